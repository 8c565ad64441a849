"""What a loop does when its statement fails: it says so and goes on.

There are two kinds of failure. The database may be away: it comes back. Or the server refuses the data of a row that
the statement meets, and would do so at each turn, and for each supervisor. (One row with an impossible instant ended
all of them, with the exit code for "cannot reach the database".) Neither ends a loop, and one row holds up no other.
"""

import time
from collections.abc import Awaitable, Callable
from logging import getLogger

import psycopg

from underway.postgres.session import DatabaseAway
from underway.supervisor.batch import Batch

log = getLogger("underway.supervisor")

# What a statement of a session raises.
FAILED = (DatabaseAway, psycopg.Error)
_MOST_PASSED_OVER = 500


class Faults:
    """Of one loop, which is named in the log by what it does: "promotion"."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._said = ""
        self.passed_over = 0  # rows, by the latest statement

    def note(self, error: Exception) -> None:
        """Log it; refused data only once, since it comes back at each turn."""
        if isinstance(error, DatabaseAway):
            log.warning("%s interrupted: %s", self._what, error)
        elif str(error) != self._said:
            self._said = str(error)
            log.error("%s: the database refuses the data of a row: %s", self._what, error)

    async def isolate(
        self, take: Callable[[int, int], Awaitable[int]], batch: Batch, sent_at: Callable[[], float]
    ) -> int:
        """How many rows `take(limit, 0)` took, in a statement that left at `sent_at()`. The batch says the limit.

        If the data of one of them is refused they are taken one by one instead: `take(1, n)` passes over the first n,
        which are those that were refused alone. They stay as they are, and are tried again by the next call.
        """
        self.passed_over, limit = 0, batch.rows
        try:
            with batch.smaller_if_interrupted(limit):
                taken = await take(limit, 0)
        except psycopg.Error as error:
            self.note(error)
        else:
            batch.succeeded(taken, seconds=time.monotonic() - sent_at())
            return taken
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
