"""The step that this process is running, if it is a worker: some calls are refused inside a step."""

from contextvars import ContextVar
from typing import Protocol
from uuid import UUID

from underway.errors import InsideStep


class CurrentStep(Protocol):
    """The identity of a step's attempt; `Context` has it."""

    job: str
    step: str

    @property
    def run_id(self) -> UUID: ...


_current: CurrentStep | None = None

# True where new asyncio tasks outlive the step: those of a state and of a connection pool, and all that they start.
survives_step: ContextVar[bool] = ContextVar("survives_step", default=False)


def current() -> CurrentStep | None:
    """The step that this process is running, or None."""
    return _current


def set_current(step: CurrentStep | None) -> None:
    """Called by the worker before and after a step."""
    global _current
    _current = step


def refuse_inside_step(call: str, instead: str) -> None:
    """Raise InsideStep if this process is running a step."""
    if _current is not None:
        raise InsideStep(f"{call} inside a step ({_current.job}.{_current.step}): {instead}")
