"""What a client reads of a run: its status and its attempts."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Status(StrEnum):
    """The state of a run. The last three are final."""

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
    bytes. `started_at` and the measurements are None if the worker and its supervisor died together.
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
