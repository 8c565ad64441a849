"""Enqueue runs and look at them, on a connection of the app's or of the caller's."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Generic
from uuid import UUID

from typing_extensions import TypeVar

from underway import codec, context, keys, options
from underway.context import refuse_inside_step
from underway.errors import InsideStep, InvalidOption, PayloadError, RunCancelled, RunFailed, RunNotFound
from underway.ids import new_id
from underway.job import Job
from underway.loading import refuse_while_loading
from underway.manifest import Placement
from underway.options import RunOptions

if TYPE_CHECKING:
    import psycopg

    from underway.app import Underway
    from underway.postgres.asking import Question
    from underway.postgres.runs import KeyedRun

R = TypeVar("R", covariant=True)

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


class Handle(Generic[R]):
    """What a sync and an async handle of a run have in common: nothing but the run's id.

    `created` says whether the call that returned this handle enqueued the run: False if it was live already under its
    unique key.
    """

    __slots__ = ("_app", "_result_type", "created", "id")

    def __init__(self, app: "Underway", run_id: UUID, result_type: Any, *, created: bool = True) -> None:
        self._app = app
        self._result_type = result_type
        self.id = run_id
        self.created = created

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handle) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"


class Run(Handle[R]):
    """A handle of one run; holds nothing but its id, so it can be made anew anywhere with `app.get_run(id)`.

    `created` says whether the call that returned this handle enqueued the run: False if it was live already under its
    unique key.
    """

    __slots__ = ()

    def status(self) -> Status:
        """Raises RunNotFound if it was never committed, or has left after its `keep`."""
        from underway.postgres import runs

        with self._app._own() as connection:
            return known_status(self.id, runs.status(connection, self.id))

    def wait(self, timeout: timedelta | float | None = None) -> Status:
        """Wait until the run is finished and return its final status. `timeout` in seconds or as a timedelta.

        Raises TimeoutError. Looks every 20 ms at first and once a second in the end; finishing sends no notification.
        """
        patience = Patience(self.id, timeout)
        while not (status := self.status()).final:
            time.sleep(patience.next_pause(status))
        return status

    def result(self, timeout: timedelta | float | None = None) -> R:
        """What `To.done` carried, once the run has succeeded; waits for that like `wait`.

        Raises RunFailed with the last error, RunCancelled, RunNotFound, TimeoutError.
        """
        from underway.postgres import runs

        self.wait(timeout)
        with self._app._own() as connection:
            outcome = runs.outcome(connection, self.id)
        value: R = result_of(self.id, outcome, self._result_type)
        return value

    def attempts(self) -> list[Attempt]:
        """All attempts so far that have ended, in order."""
        from underway.postgres import runs

        with self._app._own() as connection:
            return [Attempt(*row) for row in runs.attempts(connection, self.id)]

    def cancel(self, *, conn: "psycopg.Connection[Any] | None" = None) -> bool:
        """Cancel the run, for good; False if it was finished, cancelled before, or never there.

        A run that is not in progress is closed at once. Of one in progress nothing is written any more from the commit
        of this on: no result, no next step, no retry. Its step gets an Interrupt, is killed 5 seconds later, and then
        the run is closed.

        A step that cancels its own run gets the Interrupt itself. With conn=cx.tx it cannot cancel its own run, and
        InsideStep is raised.
        """
        from underway.postgres import runs

        refuse_while_loading("Run.cancel")
        _refuse_own_end("Run.cancel", self.id, conn)
        with self._app._given_or_own(conn) as connection:
            return runs.cancel(connection, self.id)


def enqueue(
    app: "Underway",
    job: Job[Any, Any, R],
    value: Any,
    conn: "psycopg.Connection[Any] | None",
    given: RunOptions,
) -> Run[R]:
    refuse_enqueue(conn)
    question, arguments = one_run(job, value, given)
    with app._given_or_own(conn) as connection:
        ((run_id, created),) = question(connection, *arguments)
    return Run(app, run_id, job.result_type, created=created)


def enqueue_many(
    app: "Underway",
    job: Job[Any, Any, R],
    values: Iterable[Any],
    conn: "psycopg.Connection[Any] | None",
    given: RunOptions,
) -> list[Run[R]]:
    refuse_enqueue(conn)
    question, arguments = many_runs(job, values, given, in_one=conn is None)
    with app._given_or_own(conn) as connection:
        placed = question(connection, *arguments)
    result_type = job.result_type
    return [Run(app, run_id, result_type, created=created) for run_id, created in placed]


def cancel_all(app: "Underway", job: str, conn: "psycopg.Connection[Any] | None") -> int:
    from underway.postgres import runs

    refuse_while_loading("cancel_all")
    _refuse_own_end("cancel_all", job, conn)
    with app._given_or_own(conn) as connection:
        return runs.cancel_job(connection, job)


def cancel_key(
    app: "Underway",
    job: Job[Any, Any, Any],
    unique_key: str | None,
    concurrency_key: str | None,
    conn: "psycopg.Connection[Any] | None",
) -> int:
    from underway.postgres import runs

    refuse_while_loading("cancel")
    with app._given_or_own(conn) as connection:
        return runs.cancel_key(
            connection,
            job.name,
            unique_key=unique_key,
            concurrency_key=concurrency_key,
            elsewhere=steps_with_another_key(job),
        )


def _refuse_own_end(call: str, run_or_job: UUID | str, conn: object) -> None:
    """Raise InsideStep if a step cancels its own run, or all runs of its job, in the transaction of its hand-over."""
    cx = context.current()
    if cx is None or conn is None or run_or_job not in (cx.run_id, cx.job):
        return
    from underway.postgres.transaction import StepConnection

    if isinstance(conn, StepConnection):
        raise InsideStep(
            f"{call}(conn=cx.tx) by a step of the run itself ({cx.job}.{cx.step}): the step hands over in that "
            f"transaction, so neither could be committed: raise Fail to end the run, or cancel it without conn="
        )


# What the async client does in the same way


def steps_with_another_key(job: Job[Any, Any, Any]) -> list[str]:
    """The steps at which a run of this job may not have the concurrency key that it has at another step."""
    steps = [step.spec for step in job.compiled]
    unkeyed = [step for step in steps if step.placement.concurrency_key is None]
    others = [step for step in steps if step.placement.concurrency_key != steps[0].placement.concurrency_key]
    return [] if len(steps) == 1 else [name for step in unkeyed or others for name in step.names]


def refuse_enqueue(conn: object) -> None:
    refuse_while_loading("enqueue")
    if conn is None:
        instead = "use cx.enqueue(job, value), or job.enqueue(…, conn=cx.tx) for its options: both commit with the step"
        refuse_inside_step("enqueue without conn=", instead)


def one_run(
    job: Job[Any, Any, Any], value: Any, given: RunOptions
) -> "tuple[Question[..., list[tuple[UUID, bool]]], tuple[Any, ...]]":
    """What to ask Postgres to enqueue a run; it answers with (id, created) of each. Raises PayloadError."""
    from underway.postgres import runs

    first = job.compiled[0]
    placement = options.placed(first.spec.placement, given)
    run_id, payload = new_id(), codec.encode(value, first.input_type)
    if placement.keyed:
        return runs.insert_keyed_runs, (
            [_with_keys(run_id, payload, placement)], job.name, first.spec.name, placement,
        )  # fmt: skip
    return runs.insert_run, (run_id, job.name, first.spec.name, placement, payload)


def many_runs(
    job: Job[Any, Any, Any], values: Iterable[Any], given: RunOptions, *, in_one: bool
) -> "tuple[Question[..., list[tuple[UUID, bool]]], tuple[Any, ...]]":
    """Like one_run; values without keys are encoded only as they are sent. `in_one`: see copy_runs."""
    from underway.postgres import runs

    first = job.compiled[0]
    placement = options.placed(first.spec.placement, given)
    rows = _encoded(codec.codec_for(first.input_type), values)
    if placement.keyed:
        keyed = [_with_keys(run_id, payload, placement, index) for index, (run_id, payload) in enumerate(rows)]
        return runs.insert_keyed_runs, (keyed, job.name, first.spec.name, placement)
    return runs.copy_runs, (rows, job.name, first.spec.name, placement, in_one)


def _encoded(typed: codec.Codec, values: Iterable[Any]) -> Iterator[tuple[UUID, bytes]]:
    for index, value in enumerate(values):
        try:
            payload = typed.encode(value)
        except PayloadError as error:
            raise PayloadError(f"value {index}: {error}") from error
        yield new_id(), payload


def _with_keys(run_id: UUID, payload: bytes, placement: Placement, index: int | None = None) -> "KeyedRun":
    from underway.postgres import runs

    try:
        unique, concurrency = keys.fill_both(placement.unique_key, placement.concurrency_key, payload)
    except PayloadError as error:
        raise error if index is None else PayloadError(f"value {index}: {error}") from error
    return runs.KeyedRun(run_id, payload, unique, concurrency)


def known_status(run_id: UUID, state: str | None) -> Status:
    return Status(_known(run_id, state))


def known_job(run_id: UUID, name: str | None) -> str:
    return _known(run_id, name)


def _known(run_id: UUID, what: str | None) -> str:
    if what is None:
        raise RunNotFound(f"no run has the id {run_id}: never committed, or gone after its keep")
    return what


def result_of(run_id: UUID, outcome: tuple[str, str | None, str | None] | None, result_type: Any) -> Any:
    if outcome is None:
        raise RunNotFound(f"run {run_id} has left after its keep")
    state, result, error = outcome
    if state == Status.FAILED:
        raise RunFailed(f"run {run_id} failed: {error}")
    if state == Status.CANCELLED:
        raise RunCancelled(f"run {run_id} was cancelled")
    return codec.decode(result or "null", result_type)


class Patience:
    """How long to pause between two looks at a run, until its `timeout` has passed."""

    def __init__(self, run_id: UUID, timeout: timedelta | float | None) -> None:
        refuse_inside_step("Run.wait", "it would hold a worker; hand over to a next step, or look from outside")
        self._run_id = run_id
        self._seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        if self._seconds is not None and (not isinstance(self._seconds, int | float) or math.isnan(self._seconds)):
            raise InvalidOption(f"timeout must be a timedelta or a number of seconds, not {timeout!r}")
        self._deadline = None if self._seconds is None else time.monotonic() + self._seconds
        self._pause = _FIRST_LOOK

    def next_pause(self, status: Status) -> float:
        """Raises TimeoutError."""
        pause, self._pause = self._pause, min(self._pause * 1.5, _LAST_LOOK)
        if self._deadline is None:
            return pause
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"run {self._run_id} is still {status} after {self._seconds} s")
        return min(pause, left)
