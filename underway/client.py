"""Enqueue runs and look at them, on a connection of the app's or of the caller's."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Generic
from uuid import UUID

from typing_extensions import TypeVar

from underway import codec, keys, options
from underway.context import refuse_inside_step
from underway.errors import InvalidOption, PayloadError, RunCancelled, RunFailed, RunNotFound
from underway.ids import new_id
from underway.job import Job
from underway.loading import refuse_while_loading
from underway.manifest import Placement
from underway.options import RunOptions

if TYPE_CHECKING:
    import psycopg

    from underway.app import Underway
    from underway.postgres import runs

R = TypeVar("R")
T = TypeVar("T")

_FIRST_LOOK = 0.02
_LAST_LOOK = 1.0


class Status(StrEnum):
    """Where a run stands. The last three are final."""

    PENDING = "pending"
    WAITING = "waiting"
    IN_PROGRESS = "in_progress"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self in (Status.SUCCEEDED, Status.FAILED, Status.CANCELLED)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a step, as recorded at its end.

    `outcome` is succeeded, failed, timed_out, crashed, out_of_memory, lost, released or cancelled; `peak_rss` is in
    bytes. `started_at` and what was measured are None if nobody was left to tell.
    """

    step: str
    number: int
    outcome: str
    error: str | None
    started_at: datetime | None
    finished_at: datetime
    host: str | None
    pid: int | None
    cpu_seconds: float | None
    peak_rss: int | None


class Run(Generic[R]):
    """A handle of one run; holds nothing but its id, so it can be made anew anywhere with `app.get_run(id)`.

    `created` says whether the call that returned this handle enqueued the run: False if it was live already under its
    unique key.
    """

    __slots__ = ("_app", "_result_type", "created", "id")

    def __init__(self, app: "Underway", run_id: UUID, result_type: Any, *, created: bool = True) -> None:
        self._app = app
        self._result_type = result_type
        self.id = run_id
        self.created = created

    def status(self) -> Status:
        """Raises RunNotFound if it was never committed, or has left after its `keep`."""
        from underway.postgres import runs

        with self._app.connection() as connection:
            state = runs.status(connection, self.id)
        if state is None:
            raise RunNotFound(f"no run has the id {self.id}: never committed, or gone after its keep")
        return Status(state)

    def wait(self, timeout: timedelta | float | None = None) -> Status:
        """Wait until the run is finished and return its final status. `timeout` in seconds or as a timedelta.

        Raises TimeoutError. Looks every 20 ms at first and once a second in the end; finishing sends no notification.
        """
        refuse_inside_step("Run.wait", "it would hold a worker; hand over to a next step, or look from outside")
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        deadline = None if seconds is None else time.monotonic() + seconds
        pause = _FIRST_LOOK
        while not (status := self.status()).final:
            left = pause if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"run {self.id} is still {status} after {seconds} s")
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, _LAST_LOOK)
        return status

    def result(self, timeout: timedelta | float | None = None) -> R:
        """What `To.done` carried, once the run has succeeded; waits for that like `wait`.

        Raises RunFailed with the last error, RunCancelled, RunNotFound, TimeoutError.
        """
        from underway.postgres import runs

        self.wait(timeout)
        with self._app.connection() as connection:
            outcome = runs.outcome(connection, self.id)
        if outcome is None:
            raise RunNotFound(f"run {self.id} has left after its keep")
        state, result, error = outcome
        if state == Status.FAILED:
            raise RunFailed(f"run {self.id} failed: {error}")
        if state == Status.CANCELLED:
            raise RunCancelled(f"run {self.id} was cancelled")
        value: R = codec.decode(result or "null", self._result_type)
        return value

    def attempts(self) -> list[Attempt]:
        """All attempts so far that have ended, in order."""
        from underway.postgres import runs

        with self._app.connection() as connection:
            return [Attempt(*row) for row in runs.attempts(connection, self.id)]

    def cancel(self, *, conn: "psycopg.Connection[Any] | None" = None) -> bool:
        """Cancel the run, for good; False if it was finished, cancelled before, or never there.

        A run that is not in progress is closed at once. Of one in progress nothing is written any more from the commit
        of this on: no result, no next step, no retry. Its step gets an Interrupt, is killed 5 seconds later, and then
        the run is closed.
        """
        from underway.postgres import runs

        return _in_transaction(self._app, conn, "Run.cancel", lambda connection: runs.cancel(connection, self.id))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<Run {self.id}>"


def enqueue(
    app: "Underway",
    job: Job[Any, Any, R],
    value: Any,
    conn: "psycopg.Connection[Any] | None",
    given: RunOptions,
) -> Run[R]:
    from underway.postgres import runs

    _refuse(conn)
    first = job.compiled[0]
    placement = options.placed(first.spec.placement, given)
    payload = codec.encode(value, first.input_type)
    run_id, created = new_id(), True
    with _connection(app, conn) as connection:
        if placement.keyed:
            keyed = [_with_keys(run_id, payload, placement)]
            ((run_id, created),) = runs.insert_keyed_runs(connection, keyed, job.name, first.spec.name, placement)
        else:
            runs.insert_run(connection, run_id, job.name, first.spec.name, placement, payload)
    return Run(app, run_id, job.result_type, created=created)


def enqueue_many(
    app: "Underway",
    job: Job[Any, Any, R],
    values: Iterable[Any],
    conn: "psycopg.Connection[Any] | None",
    given: RunOptions,
) -> list[Run[R]]:
    from underway.postgres import runs

    _refuse(conn)
    step = job.compiled[0].spec
    placement = options.placed(step.placement, given)
    made: list[Run[R]] = []
    rows = _encoded(app, job, values, made)
    with _connection(app, conn) as connection:
        if not placement.keyed:
            runs.copy_runs(connection, rows, job.name, step.name, placement)
            return made
        keyed = [_with_keys(run_id, payload, placement, index) for index, (run_id, payload) in enumerate(rows)]
        placed = runs.insert_keyed_runs(connection, keyed, job.name, step.name, placement)
    return [Run(app, run_id, job.result_type, created=created) for run_id, created in placed]


def _encoded(
    app: "Underway", job: Job[Any, Any, R], values: Iterable[Any], made: list[Run[R]]
) -> Iterator[tuple[UUID, bytes]]:
    """Id and payload of each value, while the list of runs grows along."""
    typed = codec.codec_for(job.compiled[0].input_type)
    result_type = job.result_type
    for index, value in enumerate(values):
        try:
            payload = typed.encode(value)
        except PayloadError as error:
            raise PayloadError(f"value {index}: {error}") from error
        run_id = new_id()
        made.append(Run(app, run_id, result_type))
        yield run_id, payload


def _with_keys(run_id: UUID, payload: bytes, placement: Placement, index: int | None = None) -> "runs.KeyedRun":
    from underway.postgres import runs

    try:
        unique, concurrency = (
            template and keys.fill(template, payload) for template in (placement.unique_key, placement.concurrency_key)
        )
    except PayloadError as error:
        raise error if index is None else PayloadError(f"value {index}: {error}") from error
    return runs.KeyedRun(run_id, payload, unique, concurrency)


def cancel_all(app: "Underway", job: str, conn: "psycopg.Connection[Any] | None") -> int:
    from underway.postgres import runs

    return _in_transaction(app, conn, "cancel_all", lambda connection: runs.cancel_job(connection, job))


def cancel_key(app: "Underway", job: str, unique_key: str, conn: "psycopg.Connection[Any] | None") -> int:
    from underway.postgres import runs

    return _in_transaction(app, conn, "cancel", lambda connection: runs.cancel_key(connection, job, unique_key))


def _in_transaction(
    app: "Underway",
    conn: "psycopg.Connection[Any] | None",
    call: str,
    do: "Callable[[psycopg.Connection[Any]], T]",
) -> T:
    """In the caller's transaction, or in one of our own."""
    refuse_while_loading(call)
    with _connection(app, conn) as connection:
        return do(connection)


@contextmanager
def _connection(app: "Underway", conn: "psycopg.Connection[Any] | None") -> "Iterator[psycopg.Connection[Any]]":
    """The caller's, or one of the app's with a transaction of its own."""
    if conn is not None:
        yield _checked(conn)
    else:
        with app.connection() as connection:
            yield connection


def _refuse(conn: object) -> None:
    refuse_while_loading("enqueue")
    if conn is None:
        refuse_inside_step("enqueue without conn=", "use cx.enqueue(job, value), which commits with the step")


def _checked(conn: Any) -> Any:
    import psycopg

    if not isinstance(conn, psycopg.Connection):
        raise InvalidOption(f"conn must be a psycopg.Connection, not {type(conn).__name__}")
    return conn
