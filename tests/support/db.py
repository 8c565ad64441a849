"""Rows for tests of the store, inserted directly, so that a test states the situation instead of producing it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4

import psycopg
from psycopg import sql

from underway.definition import manifest
from underway.definition.manifest import Lane, Policy
from underway.ids import new_id
from underway.postgres.reconnecting import ReconnectingConnection
from underway.postgres.supervisor_store import Claimed, Lanes, Store
from underway.postgres.transitions import AdvanceRun, Attempt, FinishRun
from underway.supervisor.tasks.task import Task, from_claim

T = TypeVar("T")
Connection = psycopg.Connection[Any]

LANE = Lane("default", "job", "step")
POLICY = Policy()
STEP = manifest.Step("step", policy=POLICY)
LANES = Lanes([(LANE, POLICY)])
NOW = sql.SQL("clock_timestamp()")
AGES_AGO = sql.SQL("clock_timestamp() - interval '1 hour'")
IN_AN_HOUR = sql.SQL("clock_timestamp() + interval '1 hour'")

_DEFAULTS: dict[str, Any] = {
    "queue": LANE.queue,
    "job": LANE.job,
    "step": LANE.step,
    "state": "pending",
    "keep": timedelta(days=14),
    "due_at": NOW,
    "rank": NOW,
    "input": '{"n": 1}',
}


def insert(connection: Connection, **columns: Any) -> str:
    """Insert a live run with these columns; values may be SQL expressions. Returns its ID."""
    run = columns.pop("id", None) or str(new_id())
    values = {"id": run, **_DEFAULTS, **columns}
    statement = sql.SQL("insert into underway.run ({}) values ({})").format(
        sql.SQL(", ").join(map(sql.Identifier, values)),
        sql.SQL(", ").join(value if isinstance(value, sql.SQL) else sql.Literal(value) for value in values.values()),
    )
    connection.execute(statement)
    return str(run)


def insert_held(connection: Connection, by: UUID, **columns: Any) -> tuple[str, int]:
    """A run in progress, as a claim by this supervisor leaves it. Returns its id and token."""
    token = columns.pop("token", None) or next_token(connection)
    held = {"state": "in_progress", "owner": str(by), "token": token, "lease_expires_at": IN_AN_HOUR}
    return insert(connection, **{**held, **columns}), token


def next_token(connection: Connection) -> int:
    return int(value(connection, "select nextval('underway.token')"))


def value(connection: Connection, query: str, parameters: Any = None) -> Any:
    """The one value that a query returns."""
    row = connection.execute(query, parameters).fetchone()
    assert row is not None
    return row[0]


def row_of(connection: Connection, table: str, run: str) -> dict[str, Any] | None:
    """The row of a run in run, finished_run, or attempt (the latest), by column."""
    key = "run_id" if table == "attempt" else "id"
    query = sql.SQL("select to_jsonb(t) from {} t where {} = %s order by {} desc limit 1").format(
        sql.Identifier("underway", table), sql.Identifier(key), sql.Identifier("token" if table == "attempt" else key)
    )
    row = connection.execute(query, [run]).fetchone()
    return None if row is None else dict(row[0])


def dump(connection: Connection) -> dict[str, list[str]]:
    """All rows about runs, with their versions. Two dumps are equal only if nothing was written in between."""
    return {
        table: [
            row[0]
            for row in connection.execute(
                sql.SQL("select ctid || ' ' || xmin || ' ' || to_jsonb(t)::text from {} t order by 1").format(
                    sql.Identifier("underway", table)
                )
            )
        ]
        for table in ("run", "finished_run", "attempt")
    }


def ago(seconds: float) -> float:
    """An instant of the monotonic clock, as a supervisor notes when an attempt started."""
    return time.monotonic() - seconds


def finish(
    run: str, token: int, *, state: str = "succeeded", payload: bytes | None = b'"result"', **more: Any
) -> FinishRun:
    attempt = more.pop("attempt", None) or Attempt("succeeded" if state == "succeeded" else "failed", started=ago(1.0))
    return FinishRun(run, token, state, payload, more.pop("attempts", 0), more.pop("crashes", 0), attempt, **more)


def go_on(run: str, token: int, **more: Any) -> AdvanceRun:
    """Continue at the step `next` with another input, unless told otherwise."""
    values: dict[str, Any] = {
        "step": "next",
        "queue": LANE.queue,
        "priority": 0,
        "keep": 60.0,
        "payload": b'{"n": 2}',
        "delay": 0.0,
        "number": 0,
        "attempts": 0,
        "crashes": 0,
        "releases": 0,
        "ran_step": LANE.step,
        "ran_number": 1,
        "attempt": Attempt("succeeded", started=ago(1.0)),
    }
    return AdvanceRun(run=run, token=token, **{**values, **more})


def held_task(claimed: Claimed) -> Task:
    """What a supervisor would hold after this claim."""
    return from_claim(claimed, STEP, 0.0)


def spawn(payload: str = "null", **more: Any) -> Any:
    """A child as a worker sends it; with `parent`, the token of its attempt, as a commit writes it."""
    child: dict[str, Any] = {"id": str(new_id()), "job": "child", "step": "first"}
    return {**child, "queue": "default", "priority": 0, "keep": 60.0, "delay": 0.0, "input": payload, **more}


@asynccontextmanager
async def open_store(url: str, owner: UUID | None = None) -> AsyncIterator[Store]:
    """A supervisor's store with its own connections."""
    work, leases = ReconnectingConnection(url), ReconnectingConnection(url)
    try:
        yield Store(work, leases, owner or uuid4(), "testhost")
    finally:
        await work.close()
        await leases.close()


def with_store(url: str, use: Callable[[Store], Coroutine[Any, Any, T]], owner: UUID | None = None) -> T:
    """Run `use` with a store from a test that is not async."""

    async def main() -> T:
        async with open_store(url, owner) as store:
            return await use(store)

    return asyncio.run(main())


def claim(
    url: str, tasks: int = 100, *, lanes: Lanes = LANES, suspects: int = 1, owner: UUID | None = None
) -> Sequence[Claimed]:
    """One claim by one supervisor."""
    return with_store(url, lambda store: store.claim(lanes, tasks, candidates=tasks, suspects=suspects), owner)
