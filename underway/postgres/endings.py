"""How an attempt ends, as the rows and parameters of the fenced statements that write it.

Two write them: a supervisor for many attempts at once, and a worker for the one that used `cx.tx`, in the transaction
of its step. Both must write the very same, so it is built here.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol
from uuid import UUID

import orjson

from underway.manifest import Policy
from underway.postgres.columns import Float4s, Float8s, Int2s, Int4s, Int8s, Texts, UUIDs


class Attempt(NamedTuple):
    """What the attempt row will say.

    Times are instants of our monotonic clock; Postgres is told how long ago they were. `started` is None for a task
    that never was, `ended` None for now.
    """

    outcome: str
    error: str | None = None
    started: float | None = None
    ended: float | None = None
    pid: int | None = None
    cpu_seconds: float | None = None
    peak_rss: int | None = None


class Finish(NamedTuple):
    """The run ends: its row moves to finished_run. `payload` is the result, as JSON in UTF-8."""

    run: str
    token: int
    state: str
    payload: bytes | None
    attempts: int
    crashes: int
    attempt: Attempt


class Continue(NamedTuple):
    """The run goes on: at its next step with `payload`, or at the same step with what it has (queue is None)."""

    run: str
    token: int
    step: str
    queue: str | None
    priority: int | None
    keep: float | None
    payload: bytes | None
    delay: float
    number: int
    attempts: int
    crashes: int
    releases: int
    ran_step: str
    ran_number: int
    attempt: Attempt
    concurrency_key: str | None = None
    concurrency_limit: int | None = None


class Next(NamedTuple):
    """Where the step's result puts the run."""

    step: str
    queue: str
    priority: int
    delay: float
    keep: float
    concurrency_key: str | None = None
    concurrency_limit: int | None = None


class Tried(Protocol):
    """An attempt as it was claimed; supervisor and worker each have their own view of it."""

    @property
    def run(self) -> str: ...
    @property
    def token(self) -> int: ...
    @property
    def ran_step(self) -> str: ...
    @property
    def attempt(self) -> int: ...
    @property
    def attempts(self) -> int: ...
    @property
    def crashes(self) -> int: ...


def succeed(task: Tried, attempt: Attempt, placement: Sequence[Any] | None, payload: bytes) -> Finish | Continue:
    """The row for an attempt that succeeded: at its next step, placed so (the fields of a Next), or finished."""
    if placement is None:
        return Finish(task.run, task.token, "succeeded", payload, task.attempts, task.crashes, attempt)
    following = Next._make(placement)
    return Continue(
        run=task.run,
        token=task.token,
        step=following.step,
        queue=following.queue,
        priority=following.priority,
        keep=following.keep,
        concurrency_key=following.concurrency_key,
        concurrency_limit=following.concurrency_limit,
        payload=payload,
        delay=following.delay,
        number=0,
        attempts=0,
        crashes=0,
        releases=0,
        ran_step=task.ran_step,
        ran_number=task.attempt,
        attempt=attempt,
    )


def finish_parameters(rows: Sequence[Finish], spawned: list[dict[str, Any]], owner: UUID, host: str) -> dict[str, Any]:
    """For finish_runs."""
    runs, tokens, states, payloads, attempts, crashes, notes = zip(*rows, strict=True)
    return {
        "ids": UUIDs(runs),
        "tokens": Int8s(tokens),
        "states": Texts(states),
        "payloads": Texts(payloads),
        "attempts": Int4s(attempts),
        "crashes": Int4s(crashes),
        **_attempt_columns(notes),
        "spawned": orjson.dumps(spawned).decode(),
        "owner": owner,
        "host": host,
    }


def continue_parameters(
    rows: Sequence[Continue],
    spawned: list[dict[str, Any]],
    owner: UUID,
    host: str,
    keep: Sequence[Policy | None] | None = None,
) -> dict[str, Any]:
    """For continue_runs. A run for which `keep` has a policy stays with its supervisor, claimed anew under it."""
    keep = [None] * len(rows) if keep is None else keep
    columns = dict(zip(Continue._fields, zip(*rows, strict=True), strict=True))
    return {
        "ids": UUIDs(columns["run"]),
        "tokens": Int8s(columns["token"]),
        "steps": Texts(columns["step"]),
        "queues": Texts(columns["queue"]),
        "priorities": Int2s(columns["priority"]),
        "keeps": Float8s(columns["keep"]),
        "concurrency_keys": Texts(columns["concurrency_key"]),
        "concurrency_limits": Int2s(columns["concurrency_limit"]),
        "payloads": Texts(columns["payload"]),
        "delays": Float8s(columns["delay"]),
        "attempt_numbers": Int4s(columns["number"]),
        "attempts": Int4s(columns["attempts"]),
        "crashes": Int4s(columns["crashes"]),
        "releases": Int4s(columns["releases"]),
        "ran_steps": Texts(columns["ran_step"]),
        "ran_numbers": Int4s(columns["ran_number"]),
        "leases": Float8s(None if policy is None else policy.lease.total_seconds() for policy in keep),
        "max_crashes": Int4s(None if policy is None else policy.max_crashes for policy in keep),
        **_attempt_columns(columns["attempt"]),
        "spawned": orjson.dumps(spawned).decode(),
        "owner": owner,
        "host": host,
    }


def _attempt_columns(notes: Iterable[Attempt]) -> dict[str, Any]:
    """Postgres' clock decides: it is told how long ago things happened, not when."""
    outcomes, errors, started, ended, pids, cpu_seconds, peak_rss = zip(*notes, strict=True)
    now = time.monotonic()
    return {
        "outcomes": Texts(outcomes),
        "errors": Texts(errors),
        "started": Float8s(None if at is None else now - at for at in started),
        "finished": Float8s(0.0 if at is None else now - at for at in ended),
        "pids": Int4s(pids),
        "cpu_seconds": Float4s(cpu_seconds),
        "peak_rss": Int8s(peak_rss),
    }
