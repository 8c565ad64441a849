"""What a case is given."""

from dataclasses import dataclass

from benchmarks.model import Sizes
from benchmarks.pairs import Pairs
from benchmarks.stage import Stage

PROCS = 2


@dataclass(frozen=True)
class Setting:
    stage: Stage
    sizes: Sizes
    pairs: Pairs
