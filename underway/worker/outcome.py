"""How an attempt ended, as the worker knows it."""

from typing import cast

from underway.wire.messages import Ending, NextStep, Result, Spawn
from underway.worker.usage import Usage

_UNMEASURED = Usage(0.0, 0.0, 0)


class Outcome:
    """The fields of a Result that the attempt itself decides. `payload` is as in a Result."""

    __slots__ = ("ending", "next_step", "payload", "retry_after", "spawned", "usage")

    def __init__(
        self,
        ending: Ending,
        payload: bytes,
        next_step: NextStep | None = None,
        retry_after: float | None = None,
        usage: Usage = _UNMEASURED,
    ) -> None:
        self.ending = ending
        self.payload = payload
        self.next_step = next_step
        self.retry_after = retry_after
        self.spawned: list[Spawn] = []
        self.usage = usage

    @property
    def hands_over(self) -> bool:
        """Whether the step succeeded and its hand-over is still to be written."""
        return self.ending in ("next", "done")

    @property
    def succeeded(self) -> bool:
        return self.ending in ("next", "done", "committed")

    def to_result(self, token: int, next_started: int | None) -> Result:
        # orjson writes a plain tuple four times faster than a named one
        next_step = self.next_step and cast(NextStep, tuple(self.next_step))
        return Result(
            token, next_started, self.ending, next_step, self.retry_after, self.spawned, *self.usage, self.payload
        )
