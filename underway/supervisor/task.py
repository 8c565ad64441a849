"""What a supervisor holds: a claimed run, from the claim until its end is durable or it is lost."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from underway import manifest, wire
from underway.manifest import Lane
from underway.postgres.endings import Continue
from underway.postgres.store import Claimed

if TYPE_CHECKING:
    from underway.supervisor.worker_process import WorkerProcess


@dataclass(slots=True, eq=False)
class Task:
    """An attempt in progress. Times are on the monotonic clock, `lease_deadline` on the lease clock."""

    run: str
    token: int
    lane: Lane
    step: manifest.Step
    number: int
    attempts: int
    crashes: int
    releases: int
    input: bytes
    claimed_at: float
    lease_deadline: float
    scheduled_at: float | None = None  # seconds of the epoch
    holds_key: bool = False
    worker: "WorkerProcess | None" = None
    started_at: float | None = None
    stop_sent_at: float | None = None
    stop_reason: str | None = None
    peak_rss: int = 0
    progress: bytes | None = None
    transaction: bool = False  # the step has opened its own, which may have handed over already
    cancelled: bool = False  # somebody has cancelled the run: whatever the attempt's end, it is the run's
    revoking: bool = False  # its worker has been sent a Revoke for it
    ended: bool = False  # on its way to Postgres: from here on the commit judges whether the run is still ours

    @property
    def suspect(self) -> bool:
        """Its process has died before: it runs alone, so that its next crash is its own."""
        return self.crashes > 0

    @property
    def decisive(self) -> bool:
        """Another crash quarantines its run, and not every crash would have."""
        return self.suspect and 1 < self.step.policy.max_crashes <= self.crashes + 1

    @property
    def about(self) -> dict[str, object]:
        """What a log line about it names."""
        return {"run": self.run, "job": self.lane.job, "step": self.lane.step, "attempt": self.attempt}

    @property
    def ran_step(self) -> str:
        """The step's name in the row, which may be a former one."""
        return self.lane.step

    @property
    def attempt(self) -> int:
        """The number of this try at this step, from 1."""
        return self.number + 1


def from_claim(claimed: Claimed, step: manifest.Step, leased_from: float) -> Task:
    """`leased_from` is when the claim was sent. The lease began no earlier, so counting from that time is safe."""
    return Task(
        claimed.run,
        claimed.token,
        claimed.lane,
        step,
        claimed.number,
        claimed.attempts,
        claimed.crashes,
        claimed.releases,
        claimed.input,
        claimed_at=time.monotonic(),
        lease_deadline=leased_from + step.policy.lease.total_seconds(),
        scheduled_at=claimed.scheduled_at,
        holds_key=claimed.holds_key,
    )


def from_hand_over(last: Task, row: Continue, token: int, step: manifest.Step, leased_from: float) -> Task:
    """The next step of a run that stays with its supervisor."""
    assert row.queue is not None
    assert row.payload is not None
    return Task(
        last.run,
        token,
        Lane(row.queue, last.lane.job, row.step),
        step,
        row.number,
        row.attempts,
        row.crashes,
        row.releases,
        row.payload,
        claimed_at=time.monotonic(),
        lease_deadline=leased_from + step.policy.lease.total_seconds(),
        scheduled_at=last.scheduled_at,
    )


def message(task: Task) -> wire.Task:
    """What a worker is told of it."""
    return wire.Task(
        task.run,
        task.token,
        task.lane.job,
        task.step.name,
        task.attempt,
        task.attempts,
        task.crashes,
        task.step.policy.timeout.total_seconds(),
        task.scheduled_at,
        task.input,
    )
