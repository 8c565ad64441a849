"""Postgres alone: alternating claims and commits on one connection, without a supervisor or workers.

A supervisor adds not only cost. It also overlaps work: while Postgres handles one batch, the workers run another.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from benchmarks import seed
from benchmarks.engine import FIRST, Engine, engine
from benchmarks.testbed import Testbed

# Roughly the batch of a supervisor with two workers under full load.
BATCH = 200
NAME = "Postgres alone"


class PostgresOnly:
    """Drains a backlog through an engine; rates are in runs per second."""

    def __init__(self, testbed: Testbed, connection: psycopg.Connection[Any], opened: Engine) -> None:
        self._testbed = testbed
        self._connection = connection
        self._engine = opened

    def rate(self, runs: int, batch: int = BATCH) -> float:
        return self._rate(runs, batch, two_steps=False)

    def two_step_rate(self, runs: int, batch: int = BATCH) -> float:
        """Each run is handed over to a second step and claimed again."""
        return self._rate(runs, batch, two_steps=True)

    def _rate(self, runs: int, batch: int, *, two_steps: bool) -> float:
        self._testbed.clear()
        seed.add_pending(self._connection, runs)
        began = time.perf_counter()
        finished = self._engine.run(self._drain(batch, two_steps=two_steps))
        seconds = time.perf_counter() - began
        if finished != runs:
            raise AssertionError(f"only {finished} of {runs} runs finished: the measurement is invalid")
        return runs / seconds

    async def _drain(self, batch: int, *, two_steps: bool) -> int:
        finished = 0
        while claimed := await self._engine.claim(batch):
            first_steps = [task for task in claimed if two_steps and task.lane.step == FIRST]
            if first_steps:
                await self._engine.hand_over(first_steps)
            last_steps = [task for task in claimed if not two_steps or task.lane.step != FIRST]
            if last_steps:
                await self._engine.finish(last_steps)
            finished += len(last_steps)
        return finished


@contextmanager
def postgres_only(testbed: Testbed) -> Iterator[PostgresOnly]:
    with psycopg.connect(testbed.url, autocommit=True) as connection, engine(testbed.url) as opened:
        yield PostgresOnly(testbed, connection, opened)
