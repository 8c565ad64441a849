"""What the supervisor's loops have in common: a turn, a pause, a wake-up, and what happens when a statement fails.

There are two kinds of failure. The database may be temporarily unavailable. Or the server may reject the data of a row,
and then it does so in every turn and for every supervisor. (One row with an impossible instant ended all supervisors,
with the exit code for "cannot reach the database".) Neither failure ends a loop, and a bad row does not block others.
"""

import asyncio
import contextlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from logging import getLogger

import psycopg

from underway.postgres.reconnecting import DatabaseUnavailable
from underway.supervisor.loops.adaptive_batch import AdaptiveBatch

log = getLogger("underway.supervisor")

# The exceptions that a session's statements raise.
DATABASE_ERRORS = (DatabaseUnavailable, psycopg.Error)
_MOST_PASSED_OVER = 500


class ErrorLog:
    """Logs the failed statements of one loop. `what` names the loop's work, such as "promotion"."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._logged = ""

    def report(self, error: Exception) -> None:
        """Log the error. Rejected data is logged only once, because it recurs in every turn."""
        if isinstance(error, DatabaseUnavailable):
            log.warning("%s interrupted: %s", self._what, error)
        elif str(error) != self._logged:
            self._logged = str(error)
            log.error("%s: the database refuses the data of a row: %s", self._what, error)


class Loop(ABC):
    """Calls `turn` forever, and pauses in between for as long as `turn` says, or until it is woken."""

    retry_seconds = 1.0  # the pause after a failed turn
    shortest_pause = 0.0  # between two turns, however often the loop is woken

    def __init__(self, what: str) -> None:
        self.errors = ErrorLog(what)
        self.passed_over = 0  # rows that the latest batch skipped
        self._woken = asyncio.Event()
        self._next_turn_at = 0.0
        self._stopping = False

    @abstractmethod
    async def turn(self) -> float:
        """Do what there is to do. Returns how many seconds to pause. May raise any of DATABASE_ERRORS."""

    def failed(self) -> float:
        """Called after a turn that a statement's failure ended. Returns how many seconds to pause."""
        return self.retry_seconds

    async def run(self) -> None:
        while not self._stopping:
            self._next_turn_at = math.inf  # a wake-up during the turn counts: the turn may have been too early to see
            try:
                pause = await self.turn()
            except DATABASE_ERRORS as error:
                self.errors.report(error)
                pause = self.failed()
            self.wake(pause)
            await self._pause()

    def wake(self, delay: float = 0.0) -> None:
        """Begin the next turn in this many seconds at the latest."""
        at = time.monotonic() + delay
        if at < self._next_turn_at:
            self._next_turn_at = at
            self._woken.set()

    async def _pause(self) -> None:
        self._next_turn_at = max(self._next_turn_at, time.monotonic() + self.shortest_pause)
        while (left := self._next_turn_at - time.monotonic()) > 0:
            self._woken.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left if left < math.inf else None):
                    await self._woken.wait()

    async def isolate(
        self, take: Callable[[int, int], Awaitable[int]], batch: AdaptiveBatch, seconds: Callable[[], float]
    ) -> int:
        """Call `take(limit, 0)` with the batch's limit, and return how many rows it took.

        If the data of a row is rejected, the rows are taken one by one instead: `take(1, n)` skips the first n, which
        have been rejected individually. Rejected rows are left unchanged and are retried by the next call. `seconds`
        returns how long the latest statement took.
        """
        self.passed_over = 0
        limit = batch.rows
        try:
            with batch.smaller_if_interrupted(limit):
                taken = await take(limit, 0)
        except psycopg.Error as error:
            self.errors.report(error)
            return await self._one_by_one(take, limit)
        batch.succeeded(taken, seconds=seconds())
        return taken

    async def _one_by_one(self, take: Callable[[int, int], Awaitable[int]], limit: int) -> int:
        taken = 0
        while taken < limit and self.passed_over < _MOST_PASSED_OVER:
            try:
                more = await take(1, self.passed_over)
            except psycopg.Error:
                self.passed_over += 1
            else:
                if not more:
                    break
                taken += more
        return taken
