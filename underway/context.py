"""What a step sees of its run."""

import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, Never, Protocol
from uuid import UUID

from typing_extensions import TypeVar

from underway.errors import InsideStep, InvalidOption

if TYPE_CHECKING:
    import psycopg

    from underway.client import Run
    from underway.job import Job

# A step written as `cx: Context` says nothing of a state, so it fits jobs with any and jobs without.
State = TypeVar("State", covariant=True, default=object)
_In = TypeVar("_In")
_R = TypeVar("_R")

_current: "Context | None" = None

# Whether tasks of asyncio that are begun here outlive the step: those of a state, of a pool, and all that they begin.
outliving: ContextVar[bool] = ContextVar("outliving", default=False)


class Worker(Protocol):
    """Whoever runs the step, as its context needs it."""

    state: Any

    def report(self, progress: dict[str, Any]) -> None: ...
    def spawn(self, job: "Job[Any, Any, Any]", value: Any) -> "Run[Any]": ...
    def transaction(self) -> "psycopg.Connection[tuple[Any, ...]]": ...
    def logger(self, name: str) -> logging.Logger: ...


class Context(Generic[State]):
    """Given to every step. Belongs to one attempt and to the step's own process; threads of the step may use it.

    In a child process, and once the step has ended, `tx`, `enqueue` and `progress` raise InsideStep.

    `attempt` counts every try at this step that was begun, from 1, whatever became of it.
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
            "cx cannot be passed to another process, which cannot talk to the supervisor: pass only the values that "
            "the process needs, such as cx.run_id"
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
        """What the job's `state=` factory made for this worker; None in a job without one."""
        state: State = self._worker.state
        return state

    @property
    def scheduled_at(self) -> datetime | None:
        """The slot of the schedule that enqueued this run, in UTC; None if no schedule did.

        The same in every step and at every attempt, however late it is.
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

        Opened at first use, on the supervisor's database. What is written through it takes effect exactly once for
        each step that succeeds: if the step raises, or the run was cancelled or taken away meanwhile, it is rolled
        back. Never commit it yourself. An error of Postgres that the step lets pass is a failed attempt like any other.
        """
        return self._worker.transaction()

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Say how far the step is; shown as `progress` in the view underway.runs.

        Cheap to call often: written about once a second, only the latest is kept, and it may be lost.
        """
        if not isinstance(done, int | float) or not isinstance(total, int | float | None):
            raise InvalidOption(f"progress takes numbers, not {done!r} of {total!r}")
        self._worker.report({"done": done, "total": total, "note": str(note)})

    def enqueue(self, job: "Job[_In, Never, _R]", value: _In) -> "Run[_R]":
        """Enqueue a run of another job together with this step's hand-over: all of it is committed, or nothing is.

        If this attempt fails, the run never existed.
        """
        run: Run[_R] = self._worker.spawn(job, value)
        return run


def enter(cx: Context | None) -> None:
    """Called by the worker around a step."""
    global _current
    _current = cx


def refuse_inside_step(call: str, instead: str) -> None:
    """Raise InsideStep if this process is in a step."""
    if _current is not None:
        raise InsideStep(f"{call} inside a step ({_current.job}.{_current.step}): {instead}")


def current() -> Context | None:
    """The context of the step that this process is running, or None."""
    return _current
