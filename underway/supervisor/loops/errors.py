"""Error handling for the supervisor's loops: log a failed statement and continue.

There are two kinds of failure. The database may be temporarily unavailable. Or the server may reject the data of a row,
and then it does so in every turn and for every supervisor. (One row with an impossible instant ended all supervisors,
with the exit code for "cannot reach the database".) Neither failure ends a loop, and a bad row does not block others.
"""

from collections.abc import Awaitable, Callable
from logging import getLogger

import psycopg

from underway.postgres.reconnecting import DatabaseUnavailable
from underway.supervisor.loops.adaptive_batch import AdaptiveBatch

log = getLogger("underway.supervisor")

# The exceptions that a session's statements raise.
FAILED = (DatabaseUnavailable, psycopg.Error)
_MOST_PASSED_OVER = 500


class LoopErrors:
    """The failures of one loop. `what` names the loop's work in the log, such as "promotion"."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._said = ""
        self.passed_over = 0  # rows that the latest batch skipped

    def note(self, error: Exception) -> None:
        """Log the error. Rejected data is logged only once, because it recurs in every turn."""
        if isinstance(error, DatabaseUnavailable):
            log.warning("%s interrupted: %s", self._what, error)
        elif str(error) != self._said:
            self._said = str(error)
            log.error("%s: the database refuses the data of a row: %s", self._what, error)

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
            self.note(error)
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
