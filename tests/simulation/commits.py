"""sql/statements/commits.sql: the ends of attempts, with the runs that they enqueue."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar
from uuid import UUID

import psycopg

from simulation.app import UNSTORABLE, Key
from simulation.database import NEVER, Database, Row
from simulation.ledger import Broken
from underway.definition.manifest import Lane, Policy
from underway.postgres.transitions import AdvanceRun, FinishRun

Spawned = list[dict[str, Any]]
End = TypeVar("End", FinishRun, AdvanceRun)


def finish(database: Database, owner: UUID, rows: Sequence[FinishRun], spawned: Spawned) -> tuple[set[int], list[str]]:
    """The tokens for which the fence held, and keys that were locked."""
    fenced = _through_the_fence(database, owner, rows)
    ours = [(row, end) for row, end in fenced if row.cancel_requested == (end.state == "cancelled")]
    tokens = {end.token for _, end in ours}
    _refuse(database, tokens, rows, spawned)
    for row, end in ours:
        _end(database, row, end)
        database.close(row, end.state)
    if _enqueue(database, tokens, spawned):
        database.notify("default")
    return tokens, database.keys.released_by(row for row, _ in ours)


def continue_(
    database: Database, owner: UUID, rows: Sequence[AdvanceRun], spawned: Spawned, keep: Sequence[Policy | None] | None
) -> tuple[dict[int, int | None], list[str]]:
    """The tokens for which the fence held, each with the new token if the run was claimed again; and locked keys."""
    policies = {row.token: policy for row, policy in zip(rows, keep or [None] * len(rows), strict=True)}
    ours = [(row, on) for row, on in _through_the_fence(database, owner, rows) if not row.cancel_requested]
    tokens = {on.token for _, on in ours}
    _refuse(database, tokens, rows, spawned)
    done: dict[int, int | None] = {}
    keys: set[str] = set()
    for row, on in ours:
        _end(database, row, on)
        keys |= _hand_over(database, row, on)
        policy = policies[on.token]
        done[on.token] = None if policy is None else _stay(database, row, owner, policy)
    spawned_some = _enqueue(database, tokens, spawned)
    if spawned_some or any(row.state == "pending" for row, _ in ours):
        database.notify("default")
    return done, database.keys.grant(keys)


def recorded(database: Database, keys: Iterable[tuple[str, int]]) -> dict[tuple[str, int], str]:
    attempts = database.ledger.attempts
    return {key: attempts[key] for key in keys if attempts.get(key, "lost") != "lost"}


def owned(database: Database, owner: UUID, runs: Iterable[str]) -> dict[tuple[str, int], bool]:
    rows = [database.live[run] for run in runs if run in database.live]
    held = [row for row in rows if row.owner == owner and row.state == "in_progress"]
    return {(row.run, row.token): row.cancel_requested for row in held}


def _hand_over(database: Database, row: Row, on: AdvanceRun) -> set[str]:
    """Place the run at its step. Returns the keys that it has released or needs."""
    before, held = row.key, row.holds_key
    if on.queue is not None:
        row.key = None if on.concurrency_key is None else Key(on.concurrency_key, on.concurrency_limit or 1)
        row.holds_key = held and row.key == before
    row.lane = Lane(on.queue or row.lane.queue, row.lane.job, on.step)
    row.input = on.payload or row.input
    row.number, row.attempts, row.crashes, row.releases = on.number, on.attempts, on.crashes, on.releases
    row.owner = None
    in_line = row.key is not None and not row.holds_key
    if on.delay > 0:
        row.due = database.loop.time() + on.delay
    row.rank = NEVER if in_line and on.delay > 0 else row.due
    row.state = "waiting" if in_line or on.delay > 0 else "pending"
    given_up = {before.text} if before is not None and held and not row.holds_key else set()
    return given_up | ({row.key.text} if row.key is not None and in_line else set())


def _through_the_fence(database: Database, owner: UUID, ends: Sequence[End]) -> list[tuple[Row, End]]:
    return [(row, end) for end in ends if (row := database.held(end.run, end.token, owner)) is not None]


def _end(database: Database, row: Row, end: FinishRun | AdvanceRun) -> None:
    if end.token not in database.ledger.announced and (end.attempts > row.attempts or end.crashes > row.crashes):
        raise Broken(f"{row.run} {end.token}: charged with {end.attempt.outcome}, but no worker has begun it")
    database.ledger.ended(row.run, row.lane.step, end.token, end.attempt)


def _refuse(
    database: Database, ours: set[int], ends: Sequence[FinishRun] | Sequence[AdvanceRun], spawned: Spawned
) -> None:
    """Raise before anything is written, because a failed statement has no effect."""
    if any(end.payload == UNSTORABLE for end in ends):
        raise psycopg.DataError("this payload cannot be stored")
    for child in spawned:
        if child["parent"] in ours and child["input"].encode() == UNSTORABLE:
            raise psycopg.DataError("this input cannot be stored")
        if child["parent"] in ours and child["id"] in database.live:
            raise psycopg.errors.UniqueViolation("there is such a run")


def _enqueue(database: Database, ours: set[int], spawned: Spawned) -> bool:
    """Enqueue the children. Returns whether there were any."""
    children = [child for child in spawned if child["parent"] in ours]
    for child in children:
        database.insert(child["id"], child["job"], child["step"], child["input"].encode(), child["delay"])
    return bool(children)


def _stay(database: Database, row: Row, owner: UUID, policy: Policy) -> int:
    """Claim the run again for its owner."""
    if row.state != "pending":
        raise Broken(f"{row.run}: is to be claimed again, but has to wait")
    row.state, row.owner, row.token = "in_progress", owner, database.new_token()
    row.lease_expires_at = database.loop.time() + policy.lease.total_seconds()
    row.max_crashes = policy.max_crashes
    return row.token
