"""A handle of a run: what a client can ask about it, and how it waits for it."""

import math
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic
from uuid import UUID

from typing_extensions import TypeVar

from underway.client import operations
from underway.client.current_step import refuse_inside_step
from underway.client.database import Database
from underway.client.run_state import Attempt, Status
from underway.errors import InvalidOption

if TYPE_CHECKING:
    import psycopg

R = TypeVar("R", covariant=True)

_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 1.0


class RunHandle(Generic[R]):
    """What the sync and the async handle of a run have in common: the run's ID and its database.

    `created` says whether the call that returned this handle enqueued the run: False if it was live already under its
    unique key.
    """

    __slots__ = ("_database", "_result_type", "created", "id")

    def __init__(self, database: Database, run_id: UUID, result_type: Any, *, created: bool = True) -> None:
        self._database = database
        self._result_type = result_type
        self.id = run_id
        self.created = created

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunHandle) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"


class Run(RunHandle[R]):
    """A handle of one run. It holds nothing but the run's ID, so `app.get_run(id)` makes an equal one anywhere.

    `created` says whether the call that returned this handle enqueued the run: False if it was live already under its
    unique key.
    """

    __slots__ = ()

    def status(self) -> Status:
        """Raises RunNotFound if the run was never committed, or has left the database after its `keep`."""
        return self._database.run(operations.status(self.id))

    def wait(self, timeout: timedelta | float | None = None) -> Status:
        """Wait until the run is finished and return its final status. `timeout` in seconds or as a timedelta.

        Raises TimeoutError. Polls every 20 ms at first and once a second in the end; finishing sends no notification.
        """
        backoff = PollBackoff(self.id, timeout)
        while not (status := self.status()).final:
            time.sleep(backoff.next_pause(status))
        return status

    def result(self, timeout: timedelta | float | None = None) -> R:
        """The value of `To.done`, once the run has succeeded; waits for that like `wait`.

        Raises RunFailed with the last error, RunCancelled, RunNotFound, TimeoutError.
        """
        self.wait(timeout)
        value: R = self._database.run(operations.result(self.id, self._result_type))
        return value

    def attempts(self) -> list[Attempt]:
        """All attempts that have ended so far, in order."""
        return self._database.run(operations.attempts(self.id))

    def cancel(self, *, conn: "psycopg.Connection[Any] | None" = None) -> bool:
        """Cancel the run, for good. Returns False if it is finished, cancelled already or unknown.

        A run that is not in progress ends at once. For a run in progress, nothing is written from the commit of this
        call on: no result, no next step, no retry. Its step gets an Interrupt and is killed 5 seconds later; then the
        run ends.

        A step that cancels its own run gets the Interrupt itself. With conn=cx.tx it cannot cancel its own run, and
        InsideStep is raised.
        """
        return self._database.run(operations.cancel(self.id, conn), conn)


class PollBackoff:
    """The pauses between two looks at a run, until `timeout` has passed."""

    def __init__(self, run_id: UUID, timeout: timedelta | float | None) -> None:
        refuse_inside_step(
            "Run.wait", "it would block a worker; hand over to another step, or wait outside of the step"
        )
        self._run_id = run_id
        self._seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        # NaN never compares as expired.
        if self._seconds is not None and (not isinstance(self._seconds, int | float) or math.isnan(self._seconds)):
            raise InvalidOption(f"timeout must be a timedelta or a number of seconds, not {timeout!r}")
        self._deadline = None if self._seconds is None else time.monotonic() + self._seconds
        self._pause = _FIRST_PAUSE

    def next_pause(self, status: Status) -> float:
        """Raises TimeoutError."""
        pause, self._pause = self._pause, min(self._pause * 1.5, _LONGEST_PAUSE)
        if self._deadline is None:
            return pause
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"run {self._run_id} is still {status} after {self._seconds} s")
        return min(pause, left)
