"""A task: a claimed run in a supervisor, from the claim until its end is durable or the run is lost."""

import time
from dataclasses import dataclass
from typing import Protocol

from underway.definition import manifest
from underway.definition.manifest import Lane
from underway.postgres.supervisor_store import Claimed
from underway.postgres.transitions import AdvanceRun
from underway.supervisor.tasks.state import TaskState
from underway.wire import messages


class Worker(Protocol):
    """The worker process that has a task, as far as the code that handles tasks knows it."""

    slot: int
    tasks: "dict[int, Task]"
    revoked: set[int]

    def send(self, *messages: messages.Message) -> bool: ...
    def drain(self) -> None: ...
    def signal(self, number: int) -> None: ...
    def kill_task(self, task: "Task", seen: str, why: str = "", *, last_words: float = 0.0) -> bool: ...


@dataclass(slots=True, eq=False)
class Task:
    """An attempt in progress. Times are on the monotonic clock, `lease_deadline` on the lease clock.

    HeldTasks alone changes `state`, `worker` and `started_at`.
    """

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
    state: TaskState = TaskState.WAITING
    worker: Worker | None = None
    started_at: float | None = None
    stop_sent_at: float | None = None
    stop_reason: str | None = None
    peak_rss: int = 0
    progress: bytes | None = None
    transaction: bool = False  # the step has opened its own transaction, which may have handed over already
    cancelled: bool = False  # the run was cancelled: however the attempt ends, the run ends as cancelled

    @property
    def revoked(self) -> bool:
        """Its worker was sent a Revoke, or another supervisor owns it."""
        return self.state in (TaskState.REVOKING, TaskState.LOST)

    @property
    def ended(self) -> bool:
        return self.state is TaskState.ENDED

    @property
    def suspect(self) -> bool:
        """A process that ran it has died before: it runs alone, so that its next crash is its own."""
        return self.crashes > 0

    @property
    def decisive(self) -> bool:
        """The next crash quarantines the run, unless the first crash would have done so too."""
        return self.suspect and 1 < self.step.policy.max_crashes <= self.crashes + 1

    @property
    def lease_seconds(self) -> float:
        return self.step.policy.lease.total_seconds()

    def lease_left(self, now: float) -> float:
        """Seconds until the lease expires, on the lease clock."""
        return self.lease_deadline - now

    @property
    def about(self) -> dict[str, object]:
        """The task as context for a log line."""
        return {"run": self.run, "job": self.lane.job, "step": self.lane.step, "attempt": self.attempt}

    @property
    def ran_step(self) -> str:
        """The step's name in the row, which may be a former name."""
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


def from_hand_over(last: Task, row: AdvanceRun, token: int, step: manifest.Step, leased_from: float) -> Task:
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


def message(task: Task) -> messages.Assignment:
    """The message that hands the task to a worker."""
    return messages.Assignment(
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
