"""The hand-over that a step returns: to the next step, or to the end of the run."""

from datetime import timedelta
from typing import Any, Generic, Never, TypeAlias, overload

from typing_extensions import TypeVar

from underway.definition.retry import LONGEST
from underway.errors import InvalidOption

Next = TypeVar("Next", covariant=True)
Result = TypeVar("Result", covariant=True, default=None)
_Value = TypeVar("_Value")
_R = TypeVar("_R", default=None)


class To(Generic[Next, Result]):
    """The hand-over of a step: `To.next(value)` to the next step, or `To.done(result)` to the end of the run.

    `To[Next, Result]` has the types that a step may hand over: the input of the next step, and the result with which it
    may end the run (None if not given). A step that always ends the run returns `Done`.
    """

    __slots__ = ("delay", "ends", "value")

    def __init__(self, value: Any, *, ends: bool, delay: timedelta | None = None) -> None:
        self.value = value
        self.ends = ends
        self.delay = delay

    @staticmethod
    def next(value: _Value, *, delay: timedelta | None = None) -> "To[_Value, Never]":
        """Continue with the next step and this value, after `delay`, which replaces the delay of that step."""
        if delay is not None and (not isinstance(delay, timedelta) or not timedelta(0) <= delay <= LONGEST):
            raise InvalidOption(f"delay must be a timedelta that is not negative, at most 1000 years, not {delay!r}")
        return To(value, ends=False, delay=delay)

    @overload
    @staticmethod
    def done() -> "To[Never, None]": ...
    @overload
    @staticmethod
    def done(result: _Value) -> "To[Never, _Value]": ...
    @staticmethod
    def done(result: Any = None) -> "To[Never, Any]":
        """End the run as succeeded; `Run.result()` returns this value."""
        return To(result, ends=True)

    def __repr__(self) -> str:
        return f"To.{'done' if self.ends else 'next'}({self.value!r})"


Done: TypeAlias = To[Never, _R]
