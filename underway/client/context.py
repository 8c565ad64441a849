"""What a step sees of its run."""

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, Never, Protocol
from uuid import UUID

from typing_extensions import TypeVar

from underway.client.run import Run
from underway.definition.job_definition import JobDefinition
from underway.errors import InsideStep, InvalidOption

if TYPE_CHECKING:
    import psycopg

# A step that is written as `cx: Context` does not use a state, so it fits jobs with any state and jobs without one.
State = TypeVar("State", covariant=True, default=object)
_In = TypeVar("_In")
_R = TypeVar("_R")


class Worker(Protocol):
    """The process that runs a step, as the step's context uses it."""

    state: Any

    def report(self, progress: dict[str, Any]) -> None: ...
    def spawn(self, job: JobDefinition[Any, Any, Any], value: Any) -> Run[Any]: ...
    def transaction(self) -> "psycopg.Connection[tuple[Any, ...]]": ...
    def logger(self, name: str) -> logging.Logger: ...


class Context(Generic[State]):
    """The first argument of every step. It belongs to one attempt and its process; threads of the step may use it.

    In a child process, and once the step has ended, `tx`, `enqueue` and `progress` raise InsideStep.

    `attempt` is the number of this try at this step, from 1. It counts every try that was started, however it ended.
    """

    __slots__ = ("_ends_at", "_run", "_scheduled_at", "_worker", "attempt", "job", "step")

    def __init__(
        self,
        *,
        run: str,
        job: str,
        step: str,
        attempt: int,
        ends_at: float,
        worker: Worker,
        scheduled_at: float | None = None,
    ) -> None:
        self.job = job
        self.step = step
        self.attempt = attempt
        self._run = run
        self._ends_at = ends_at
        self._scheduled_at = scheduled_at
        self._worker = worker

    def __reduce__(self) -> Never:
        raise InsideStep(
            "cx cannot be passed to another process, which has no connection to the supervisor: pass only the values "
            "that the process needs, such as cx.run_id"
        )

    @property
    def run_id(self) -> UUID:
        return UUID(self._run)

    @property
    def deadline(self) -> datetime:
        """When the step will be interrupted."""
        return datetime.fromtimestamp(self._ends_at, UTC)

    @property
    def state(self) -> State:
        """The object that the job's `state=` factory made for this worker; None in a job without one."""
        state: State = self._worker.state
        return state

    @property
    def scheduled_at(self) -> datetime | None:
        """The slot of the schedule that enqueued this run, in UTC; None for a run without a schedule.

        It is the same in every step and at every attempt, however late they are.
        """
        return None if self._scheduled_at is None else datetime.fromtimestamp(self._scheduled_at, UTC)

    @property
    def log(self) -> logging.Logger:
        """Logs to the supervisor's log, with run, job, step and attempt, however the app configures logging.

        The app's handlers receive the records too, as those of the logger "job.step".
        """
        return self._worker.logger(f"{self.job}.{self.step}")

    @property
    def tx(self) -> "psycopg.Connection[tuple[Any, ...]]":
        """A connection in a transaction that is committed together with this step's hand-over, or not at all.

        Opened at first use, on the supervisor's database. Writes through it take effect exactly once for each step that
        succeeds. They are rolled back if the step raises, or if the run was cancelled or taken over meanwhile. Never
        commit it yourself. If a Postgres error aborts it and the step continues, the attempt fails.
        """
        return self._worker.transaction()

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Report the progress of the step; the view underway.runs shows it as `progress`.

        Cheap to call often: it is written about once a second, only the latest is kept, and it may be lost.
        """
        if not isinstance(done, int | float) or not isinstance(total, int | float | None):
            raise InvalidOption(f"progress must be given as numbers, not {done!r} of {total!r}")
        self._worker.report({"done": done, "total": total, "note": str(note)})

    def enqueue(self, job: JobDefinition[_In, Never, _R], value: _In) -> Run[_R]:
        """Enqueue a run of another job together with this step's hand-over: both are committed, or neither.

        If this attempt fails, the run never existed.
        """
        run: Run[_R] = self._worker.spawn(job, value)
        return run
