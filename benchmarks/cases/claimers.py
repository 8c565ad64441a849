"""The slowest claim of many supervisors that share one backlog, beside that of one that has it for itself.

Each looks at what others take at the same moment: what that costs must not grow with what they all take.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import psycopg

from benchmarks import rows
from benchmarks.cases.setting import Setting
from benchmarks.engine import Engine, engine
from benchmarks.model import OURS, Row

_CLAIMERS = 16
_BATCH = 100
_BACKLOG = 10_000
# As far down the lane as a supervisor looks after short answers.
_WIDEST = 4000
_ALONE = "one claimer"


def run(setting: Setting) -> list[Row]:
    backlog = setting.sizes.scaled(_BACKLOG)

    def slowest(claimers: int) -> float:
        setting.stage.empty()
        with psycopg.connect(setting.stage.url, autocommit=True) as connection:
            rows.load(connection, rows.PENDING, backlog, setting.pairs.say)
        with _engines(setting.stage.url, claimers) as engines, ThreadPoolExecutor(claimers) as threads:
            return 1000 * max(threads.map(_slowest, engines))

    samples = setting.pairs.alternate({OURS: lambda: slowest(_CLAIMERS), _ALONE: lambda: slowest(1)})
    setting.stage.empty()
    return [Row(f"slowest claim of {_CLAIMERS} claimers", "ms", samples, lower_is_better=True)]


@contextmanager
def _engines(url: str, count: int) -> Iterator[list[Engine]]:
    with ExitStack() as opened:
        yield [opened.enter_context(engine(url)) for _ in range(count)]


def _slowest(claimer: Engine) -> float:
    """Seconds, while it takes all it gets."""
    longest, candidates = 0.0, _BATCH
    while True:
        began = time.perf_counter()
        claimed = claimer.run(claimer.claim(_BATCH, candidates=candidates))
        longest = max(longest, time.perf_counter() - began)
        if not claimed and candidates == _WIDEST:
            return longest
        candidates = _BATCH if len(claimed) == _BATCH else min(candidates * 4, _WIDEST)
