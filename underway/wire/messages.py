"""The messages between a supervisor and its workers. `frames` writes and reads them.

A field named `payload` is the last one and holds bytes that the receiver does not parse: the user's JSON, or a text.
"""

from typing import Annotated, Literal, NamedTuple, TypeAlias

import msgspec
from typing_extensions import TypedDict

Scalar: TypeAlias = str | int | float | bool | None
Ending: TypeAlias = Literal["next", "done", "committed", "retry", "fail", "interrupted"]
# Limited to values that Postgres can store: with any other value the attempt could not even be recorded as failed.
RetryDelay: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=365_000 * 86_400)]  # retry.LONGEST
Seconds: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Bytes: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class NextStep(NamedTuple):
    """Where a hand-over puts the run: at this step, with its options for this run. `delay` and `keep` are in seconds.

    The step's Placement with its key template filled in.
    """

    step: str
    queue: str
    priority: int
    delay: float
    keep: float
    concurrency_key: str | None = None
    concurrency_limit: int | None = None


class Spawn(TypedDict):
    """A run to enqueue with the hand-over. The keys are the columns that the SQL statement reads."""

    id: str
    job: str
    step: str
    queue: str
    priority: int
    delay: float
    keep: float
    concurrency_key: str | None
    concurrency_limit: int | None
    input: str


# Sent by a supervisor


class Welcome(NamedTuple):
    """The database, and the owner of the runs, for the transactions of steps (`cx.tx`). Sent before any Assignment."""

    owner: str
    host: str
    database: str


class Assignment(NamedTuple):
    """Run this step.

    `attempt` is the number of this attempt at the step, from 1. `attempts` and `crashes` are the run's counters, which
    the hand-over in a step's own transaction writes back unchanged. `timeout` is in seconds from the start of the
    step, `scheduled_at` in seconds since the epoch.
    """

    run: str
    token: int
    job: str
    step: str
    attempt: int
    attempts: int
    crashes: int
    timeout: float
    scheduled_at: float | None
    payload: bytes

    @property
    def ran_step(self) -> str:
        """The name of this field in an AttemptRef (postgres.transitions)."""
        return self.step


class Stop(NamedTuple):
    """Interrupt this task if it is the running one. Followed by STOP_SIGNAL."""

    token: int
    reason: str


class Revoke(NamedTuple):
    """Do not start this task, which was pipelined."""

    token: int


class End(NamedTuple):
    """Exit in order. Sent only to a worker that has no tasks."""


# Sent by a worker


class Hello(NamedTuple):
    """The app is imported. `payload` is the manifest."""

    pid: int
    payload: bytes


class BootFailed(NamedTuple):
    """The app cannot be imported. `payload` is the traceback."""

    payload: bytes


class Started(NamedTuple):
    """From now on the worker's death is charged to this task. Sent before the task's payload is decoded."""

    token: int


class Progress(NamedTuple):
    """What the step has passed to `cx.progress`, as JSON."""

    token: int
    payload: bytes


class Log(NamedTuple):
    """A log record of user code. `payload` is its message, `extra` the attributes that user code has added to it."""

    token: int
    level: int
    logger: str
    exception: str | None
    extra: dict[str, Scalar]
    payload: bytes


class Transaction(NamedTuple):
    """The step opens its own transaction, whose backend must die with the worker. Sent before the first query."""

    token: int


class Result(NamedTuple):
    """How the step ended. `payload` is the next step's input, the run's result, or the text of the error.

    After "committed" nothing is left to write: the step's own transaction has written the hand-over. `retry_after` is
    the delay that the step's Retry asked for. `next_started` is the token of the task that the worker starts now: a
    separate Started would double the number of frames for short tasks.
    """

    token: int
    next_started: int | None
    ending: Ending
    next_step: NextStep | None
    retry_after: RetryDelay | None
    spawned: list[Spawn]
    seconds: Seconds
    cpu_seconds: Seconds
    peak_rss: Bytes
    payload: bytes


class Skipped(NamedTuple):
    """A task was not run, because it was revoked or because the worker's process state cannot be restored."""

    token: int


class Tainted(NamedTuple):
    """A step has changed this process irreversibly: replace it. Tasks that have not started return as Skipped."""

    reason: str


Message: TypeAlias = (
    Hello
    | BootFailed
    | Welcome
    | Assignment
    | Started
    | Progress
    | Log
    | Transaction
    | Result
    | Stop
    | Revoke
    | Skipped
    | Tainted
    | End
)
