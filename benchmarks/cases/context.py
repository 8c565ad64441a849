"""The arguments of a benchmark case."""

from dataclasses import dataclass

from benchmarks.model import Sizes
from benchmarks.sampler import Sampler
from benchmarks.testbed import Testbed

PROCS = 2


@dataclass(frozen=True)
class CaseContext:
    testbed: Testbed
    sizes: Sizes
    sampler: Sampler
