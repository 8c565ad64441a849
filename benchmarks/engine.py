"""A supervisor's own statements on a connection like its own, without a supervisor or workers.

Only this module of the benchmarks knows the types of the store.
"""

import asyncio
import os
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import uuid4

from underway.definition.manifest import Lane, Policy
from underway.postgres.connection import conninfo
from underway.postgres.reconnecting import ReconnectingConnection
from underway.postgres.supervisor_store import Claimed, Lanes, Store
from underway.postgres.transitions import AdvanceRun, Attempt, FinishRun
from underway.supervisor.loops.claim import SCAN_SHARE

T = TypeVar("T")

QUEUE = "default"
# No app declares this job, so a supervisor that runs at the same time does not claim its runs.
JOB = "benchmark-engine"
FIRST, SECOND = "first", "second"


class Engine:
    """Claims and commits on one connection, in turn."""

    def __init__(self, url: str) -> None:
        self._runner = asyncio.Runner()
        self._session = ReconnectingConnection(conninfo(url))
        self._store = Store(self._session, self._session, uuid4(), "benchmark")
        self._lanes = Lanes([(Lane(QUEUE, JOB, step), Policy()) for step in (FIRST, SECOND)])
        self._rescan_at = 0.0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """For synchronous callers; the connection stays open between calls."""
        return self._runner.run(work)

    async def claim(self, tasks: int, *, candidates: int | None = None) -> list[Claimed]:
        return await self._store.claim(self._lanes, tasks, candidates=candidates or tasks, suspects=1)

    async def claim_like_supervisor(self, tasks: int) -> list[Claimed]:
        """Claim as a supervisor does under a backlog: from its cursor, and for a tenth of the time from the start."""
        began = time.monotonic()
        from_start = began >= self._rescan_at
        claimed = await self._store.claim(self._lanes, tasks, candidates=tasks, suspects=1, from_start=from_start)
        if from_start:
            now = time.monotonic()
            self._rescan_at = now + (now - began) / SCAN_SHARE
        return claimed

    async def finish(self, claimed: list[Claimed]) -> None:
        rows = [FinishRun(task.run, task.token, "succeeded", None, 0, 0, _attempt()) for task in claimed]
        _check_committed(rows, await self._store.finish(rows, []))

    async def hand_over(self, claimed: list[Claimed]) -> None:
        """Advance these runs to the second step, where they are claimed again."""
        _check_committed(claimed, await self._store.continue_([_to_second_step(task) for task in claimed], []))

    def close(self) -> None:
        self.run(self._session.close())
        self._runner.close()


@contextmanager
def engine(url: str) -> Iterator[Engine]:
    opened = Engine(url)
    try:
        yield opened
    finally:
        opened.close()


def _attempt() -> Attempt:
    now = time.monotonic()
    return Attempt("succeeded", started=now, ended=now, pid=os.getpid(), cpu_seconds=0.001, peak_rss=50_000_000)


def _to_second_step(task: Claimed) -> AdvanceRun:
    return AdvanceRun(
        run=task.run,
        token=task.token,
        step=SECOND,
        queue=QUEUE,
        priority=0,
        keep=3600.0,
        payload=None,
        delay=0.0,
        number=0,
        attempts=0,
        crashes=0,
        releases=0,
        ran_step=FIRST,
        ran_number=1,
        attempt=_attempt(),
    )


def _check_committed(tasks: list[Any], committed: Any) -> None:
    if len(committed) != len(tasks):
        raise AssertionError(f"only {len(committed)} of {len(tasks)} commits took effect: the measurement is invalid")
