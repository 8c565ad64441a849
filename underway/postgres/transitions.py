"""The rows and parameters of the fenced statements that write the end of an attempt.

A supervisor runs them for many attempts at once; a worker runs them for an attempt that used `cx.tx`, in the
transaction of its step. Both must write the same, so the parameters are built here.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol
from uuid import UUID

import orjson

from underway.definition.manifest import Policy
from underway.postgres.arrays import Float4s, Float8s, Int2s, Int4s, Int8s, Texts, UUIDs
from underway.wire.messages import NextStep


class Attempt(NamedTuple):
    """The content of an attempt row.

    Times are on this host's monotonic clock; Postgres is told how long ago they were. `started` is None for a task that
    was never started, `ended` is None for now.
    """

    outcome: str
    error: str | None = None
    started: float | None = None
    ended: float | None = None
    pid: int | None = None
    cpu_seconds: float | None = None
    peak_rss: int | None = None


class FinishRun(NamedTuple):
    """The run ends: its row moves to finished_run. `payload` is the result, as JSON in UTF-8."""

    run: str
    token: int
    state: str
    payload: bytes | None
    attempts: int
    crashes: int
    attempt: Attempt


class AdvanceRun(NamedTuple):
    """The run continues: at its next step with `payload`, or at the same step with the stored input (queue is None)."""

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


class AttemptRef(Protocol):
    """An attempt as it was claimed. The supervisor and the worker each have their own class for it."""

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


def succeed(task: AttemptRef, attempt: Attempt, next_step: NextStep | None, payload: bytes) -> FinishRun | AdvanceRun:
    """The row for an attempt that succeeded: the run advances to this step, or finishes if there is none."""
    if next_step is None:
        return FinishRun(task.run, task.token, "succeeded", payload, task.attempts, task.crashes, attempt)
    return AdvanceRun(
        run=task.run,
        token=task.token,
        step=next_step.step,
        queue=next_step.queue,
        priority=next_step.priority,
        keep=next_step.keep,
        concurrency_key=next_step.concurrency_key,
        concurrency_limit=next_step.concurrency_limit,
        payload=payload,
        delay=next_step.delay,
        number=0,
        attempts=0,
        crashes=0,
        releases=0,
        ran_step=task.ran_step,
        ran_number=task.attempt,
        attempt=attempt,
    )


def finish_parameters(
    rows: Sequence[FinishRun], spawned: list[dict[str, Any]], owner: UUID, host: str
) -> dict[str, Any]:
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
    rows: Sequence[AdvanceRun],
    spawned: list[dict[str, Any]],
    owner: UUID,
    host: str,
    keep: Sequence[Policy | None] | None = None,
) -> dict[str, Any]:
    """For continue_runs. A run for which `keep` has a policy is claimed again at once, by its supervisor."""
    keep = [None] * len(rows) if keep is None else keep
    columns = dict(zip(AdvanceRun._fields, zip(*rows, strict=True), strict=True))
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
    """Only Postgres' clock counts, so instants are sent as the number of seconds since then."""
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
