"""The slowest claim when many supervisors share one backlog, beside the slowest claim of a single one.

Each claim skips the rows that the others have locked. Its cost must not grow with all that they claim.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import psycopg

from benchmarks import seed
from benchmarks.cases.context import CaseContext
from benchmarks.engine import Engine, engine
from benchmarks.model import OURS, Row

_CLAIMERS = 16
_BATCH = 100
_BACKLOG = 10_000
# How far into the lane a supervisor searches after claims that returned few runs.
_WIDEST = 4000
_ALONE = "one claimer"


def run(context: CaseContext) -> list[Row]:
    backlog = context.sizes.scaled(_BACKLOG)

    def slowest(claimers: int) -> float:
        context.testbed.empty()
        with psycopg.connect(context.testbed.url, autocommit=True) as connection:
            seed.load(connection, seed.PENDING, backlog, context.sampler.show_progress)
        with _engines(context.testbed.url, claimers) as engines, ThreadPoolExecutor(claimers) as threads:
            return 1000 * max(threads.map(_slowest, engines))

    samples = context.sampler.alternate({OURS: lambda: slowest(_CLAIMERS), _ALONE: lambda: slowest(1)})
    context.testbed.empty()
    return [Row(f"slowest claim of {_CLAIMERS} claimers", "ms", samples, lower_is_better=True)]


@contextmanager
def _engines(url: str, count: int) -> Iterator[list[Engine]]:
    with ExitStack() as opened:
        yield [opened.enter_context(engine(url)) for _ in range(count)]


def _slowest(claimer: Engine) -> float:
    """Claim until no run is left; return the seconds of the slowest claim."""
    longest, candidates = 0.0, _BATCH
    while True:
        began = time.perf_counter()
        claimed = claimer.run(claimer.claim(_BATCH, candidates=candidates))
        longest = max(longest, time.perf_counter() - began)
        if not claimed and candidates == _WIDEST:
            return longest
        candidates = _BATCH if len(claimed) == _BATCH else min(candidates * 4, _WIDEST)
