"""What a step sees of its run."""

import logging
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Never
from uuid import UUID

from typing_extensions import TypeVar

from underway.errors import InsideStep, InvalidOption

if TYPE_CHECKING:
    from underway.client import Run
    from underway.job import Job

_In = TypeVar("_In")
_R = TypeVar("_R")

_current: "Context | None" = None


class Context:
    """Given to every step. Belongs to one attempt; of no use after it.

    `attempt` counts every try at this step that was begun, from 1, whatever became of it. `deadline` is when the
    step will be interrupted. `log` forwards to the supervisor's log, with run, job, step and attempt.
    """

    __slots__ = ("_report", "_spawn", "attempt", "deadline", "job", "log", "run_id", "step")

    def __init__(
        self,
        *,
        run_id: UUID,
        job: str,
        step: str,
        attempt: int,
        deadline: datetime,
        report: Callable[[dict[str, Any]], None],
        spawn: Callable[["Job[Any, Any, Any]", Any], "Run[Any]"],
    ) -> None:
        self.run_id = run_id
        self.job = job
        self.step = step
        self.attempt = attempt
        self.deadline = deadline
        self.log = logging.getLogger(f"{job}.{step}")
        self._report = report
        self._spawn = spawn

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Say how far the step is; shown as `progress` in the view underway.runs.

        Cheap to call often: written about once a second, only the latest is kept, and it may be lost.
        """
        if not isinstance(done, int | float) or not isinstance(total, int | float | None):
            raise InvalidOption(f"progress takes numbers, not {done!r} of {total!r}")
        self._report({"done": done, "total": total, "note": str(note)})

    def enqueue(self, job: "Job[_In, Never, _R]", value: _In) -> "Run[_R]":
        """Enqueue a run of another job together with this step's hand-over: all of it is committed, or nothing is.

        If this attempt fails, the run never existed.
        """
        run: Run[_R] = self._spawn(job, value)
        return run


def enter(cx: Context | None) -> None:
    """Called by the worker around a step."""
    global _current
    _current = cx


def refuse_inside_step(call: str, instead: str) -> None:
    """Raise InsideStep if this process is in a step."""
    if _current is not None:
        raise InsideStep(f"{call} inside a step ({_current.job}.{_current.step}): {instead}")
