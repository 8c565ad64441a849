"""Postgres alone: claims and commits in turn on one connection, with no supervisor and no worker in between.

What a supervisor adds is not only cost: while Postgres works on one batch, its workers have another.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from benchmarks import rows
from benchmarks.engine import FIRST, Engine, engine
from benchmarks.stage import Stage

# About what a supervisor of two workers claims and commits at once under full load.
BATCH = 200
NAME = "Postgres alone"


class Alone:
    """A backlog of an engine's, worked off; rates are in runs a second."""

    def __init__(self, stage: Stage, connection: psycopg.Connection[Any], opened: Engine) -> None:
        self._stage = stage
        self._connection = connection
        self._engine = opened

    def rate(self, runs: int, batch: int = BATCH) -> float:
        return self._rate(runs, batch, two_steps=False)

    def two_step_rate(self, runs: int, batch: int = BATCH) -> float:
        """Every run is handed over to a second step and claimed once more."""
        return self._rate(runs, batch, two_steps=True)

    def _rate(self, runs: int, batch: int, *, two_steps: bool) -> float:
        self._stage.clear()
        rows.add(self._connection, runs)
        began = time.perf_counter()
        finished = self._engine.run(self._work_off(batch, two_steps=two_steps))
        seconds = time.perf_counter() - began
        if finished != runs:
            raise AssertionError(f"{finished} of {runs} runs were finished: this measurement is worth nothing")
        return runs / seconds

    async def _work_off(self, batch: int, *, two_steps: bool) -> int:
        finished = 0
        while claimed := await self._engine.claim(batch):
            ahead = [task for task in claimed if two_steps and task.lane.step == FIRST]
            if ahead:
                await self._engine.hand_over(ahead)
            last = [task for task in claimed if not two_steps or task.lane.step != FIRST]
            if last:
                await self._engine.finish(last)
            finished += len(last)
        return finished


@contextmanager
def alone(stage: Stage) -> Iterator[Alone]:
    with psycopg.connect(stage.url, autocommit=True) as connection, engine(stage.url) as opened:
        yield Alone(stage, connection, opened)
