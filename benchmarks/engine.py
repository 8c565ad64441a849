"""A supervisor's own statements on a session like its own, and nothing around them: no supervisor, no workers.

All that the benchmarks know of the store's shapes is in here.
"""

import asyncio
import os
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import uuid4

from underway.manifest import Lane, Policy
from underway.postgres.connect import conninfo
from underway.postgres.endings import Attempt, Continue, Finish
from underway.postgres.session import Session
from underway.postgres.store import Claimed, Lanes, Store
from underway.supervisor.claims import HEAD_SHARE

T = TypeVar("T")

QUEUE = "default"
# No app has it, so that a supervisor beside us leaves its runs alone.
JOB = "benchmark-engine"
FIRST, SECOND = "first", "second"


class Engine:
    """Claims and commits on one connection, one after the other."""

    def __init__(self, url: str) -> None:
        self._runner = asyncio.Runner()
        self._session = Session(conninfo(url))
        self._store = Store(self._session, self._session, uuid4(), "benchmark")
        self._lanes = Lanes([(Lane(QUEUE, JOB, step), Policy()) for step in (FIRST, SECOND)])
        self._head_at = 0.0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """For callers that are not async; the connection stays open from one to the next."""
        return self._runner.run(work)

    async def claim(self, tasks: int, *, candidates: int | None = None) -> list[Claimed]:
        return await self._store.claim(self._lanes, tasks, candidates=candidates or tasks, suspects=1)

    async def claim_on(self, tasks: int) -> list[Claimed]:
        """As a supervisor claims under a backlog: from where it left off, and for a tenth of the time from the head."""
        began = time.monotonic()
        from_start = began >= self._head_at
        claimed = await self._store.claim(self._lanes, tasks, candidates=tasks, suspects=1, from_start=from_start)
        if from_start:
            now = time.monotonic()
            self._head_at = now + (now - began) / HEAD_SHARE
        return claimed

    async def finish(self, claimed: list[Claimed]) -> None:
        rows = [Finish(task.run, task.token, "succeeded", None, 0, 0, _attempt()) for task in claimed]
        _all_held(rows, await self._store.finish(rows, []))

    async def hand_over(self, claimed: list[Claimed]) -> None:
        """Put these runs at the second step, to be claimed again."""
        _all_held(claimed, await self._store.continue_([_at_second(task) for task in claimed], []))

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


def _at_second(task: Claimed) -> Continue:
    return Continue(
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


def _all_held(tasks: list[Any], committed: Any) -> None:
    if len(committed) != len(tasks):
        raise AssertionError(f"{len(committed)} of {len(tasks)} commits took effect: this measurement is worth nothing")
