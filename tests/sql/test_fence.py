"""The fence: only the supervisor that holds a run writes its attempt, under exactly its token (promise 2).

The matrices are generated, so that a statement, a state or a kind of token cannot be left out by oversight.
"""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable
from itertools import product
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from db import (
    AGES_AGO,
    IN_AN_HOUR,
    LANE,
    LANES,
    POLICY,
    Connection,
    ago,
    dump,
    finish,
    go_on,
    insert,
    insert_held,
    next_token,
    open_store,
    spawn,
    value,
)
from psycopg import sql

from underway import RunCancelled
from underway.postgres import admin_queries, client_queries, migrate
from underway.postgres.queries import statements
from underway.postgres.supervisor_store import Renewal, Store
from underway.postgres.transitions import Attempt

US, OTHERS = uuid4(), uuid4()

Batch = list[tuple[str, int]]
# Returns the tokens for which the fence held.
FencedWrite = Callable[[Store, Batch], Awaitable[set[int]]]


async def _finish(store: Store, batch: Batch) -> set[int]:
    return await store.finish([finish(run, token) for run, token in batch], [spawn(parent=token) for _, token in batch])


async def _fail(store: Store, batch: Batch) -> set[int]:
    rows = [finish(run, token, state="failed", payload=None, attempts=5) for run, token in batch]
    return await store.finish(rows, [])


async def _close_cancelled(store: Store, batch: Batch) -> set[int]:
    rows = [finish(run, token, state="cancelled", payload=None) for run, token in batch]
    return await store.finish(rows, [spawn(parent=token) for _, token in batch])


async def _next(store: Store, batch: Batch) -> set[int]:
    rows = [go_on(run, token) for run, token in batch]
    return set(await store.continue_(rows, [spawn(parent=token) for _, token in batch]))


async def _next_claimed(store: Store, batch: Batch) -> set[int]:
    """The same commit claims the next step."""
    rows = [go_on(run, token) for run, token in batch]
    return set(await store.continue_(rows, [spawn(parent=token) for _, token in batch], [POLICY] * len(batch)))


async def _retry(store: Store, batch: Batch) -> set[int]:
    attempt = Attempt("failed", "oh", started=ago(1.0))
    rows = [go_on(run, token, step="step", payload=None, delay=9.0, attempt=attempt) for run, token in batch]
    return set(await store.continue_(rows, []))


async def _release(store: Store, batch: Batch) -> set[int]:
    rows = [go_on(run, token, step="step", payload=None, attempt=Attempt("released")) for run, token in batch]
    return set(await store.continue_(rows, []))


async def _renew(store: Store, batch: Batch) -> set[int]:
    renewed = await store.renew([Renewal(run, token, 60.0, '{"done": 1}') for run, token in batch])
    tokens = dict(batch)  # renew returns runs; of a run named twice, the last token counts
    return {tokens[run] for run in renewed}


# Every way to write under a token, by the statement it uses.
FENCED: dict[str, list[FencedWrite]] = {
    "finish_runs": [_finish, _fail, _close_cancelled],
    "continue_runs": [_next, _next_claimed, _retry, _release],
    "renew_leases": [_renew],
}
# The situation in which a write is allowed, if not "in progress": a cancelled run can only end as cancelled.
ALLOWED: dict[FencedWrite, str] = {_close_cancelled: "cancel requested"}
FENCED_WRITES = [pytest.param(write, id=f"{name}-{write.__name__}") for name in FENCED for write in FENCED[name]]

CANCELLABLE = {
    *("pending", "waiting", "waiting, in our name", "waiting and due", "waiting for a key"),
    *("in progress", "in progress, others'", "lease expired, ours", "lease expired, others'"),
}

# Statements without a token, and the situations in which each may write a run.
BY_SITUATION: dict[str, set[str]] = {
    "claim_tasks": {"pending"},
    "promote_runs": {"waiting and due"},
    "join_key_queue": {"waiting for a key"},
    "sweep_keys": {"waiting for a key"},
    "cancel_run": CANCELLABLE,
    "cancel_job": CANCELLABLE,
    "cancel_key": CANCELLABLE,
    "cancel_concurrency_key": {"waiting for a key"},
    "redrive_run": {"failed", "quarantined"},
    "redrive_label": {"failed"},
    "release_quarantined": {"quarantined"},
    "expire_runs": {"expired"},
    "reap_runs": {"lease expired, ours", "lease expired, others'"},
    "rehearse_renewal": set(),
    "drop_run": set(),  # only a run with the ID of a finished one
    "release_unknown": {"in progress", "lease expired, ours"},
}

# Statements that only add rows.
ADDING = {
    "enqueue_run": "inserts a run under a new id",
    "enqueue_keyed_runs": "inserts runs under new ids, or none where a unique key is in use",
    "copy_runs": "inserts runs under new ids",
    "fire_schedule": "inserts runs under new ids",
}
# Statements of tests.
TESTING = {"advance": "lets time pass for all runs"}

SITUATIONS: dict[str, dict[str, Any]] = {
    "in progress": {"state": "in_progress", "owner": str(US), "lease_expires_at": IN_AN_HOUR},
    "in progress, others'": {"state": "in_progress", "owner": str(OTHERS), "lease_expires_at": IN_AN_HOUR},
    "pending": {"state": "pending"},
    "waiting": {"state": "waiting", "due_at": IN_AN_HOUR},
    # No statement leaves such a row. The state alone must be reason enough to refuse a write.
    "waiting, in our name": {"state": "waiting", "due_at": IN_AN_HOUR, "owner": str(US)},
    "cancel requested": {
        "state": "in_progress",
        "owner": str(US),
        "lease_expires_at": IN_AN_HOUR,
        "cancel_requested": True,
    },
    "finished": {},
    "missing": {},
}
WITHOUT_TOKEN: dict[str, dict[str, Any]] = {
    **SITUATIONS,
    "waiting and due": {"state": "waiting", "due_at": AGES_AGO},
    "waiting for a key": {"state": "waiting", "due_at": AGES_AGO, "concurrency_key": "key"},
    "lease expired, ours": {"state": "in_progress", "owner": str(US), "lease_expires_at": AGES_AGO},
    "lease expired, others'": {"state": "in_progress", "owner": str(OTHERS), "lease_expires_at": AGES_AGO},
    "failed": {},
    "quarantined": {},
    "cancelled": {},
    "expired": {},
}
del WITHOUT_TOKEN["cancel requested"]


@pytest.fixture
def any_database(any_database: str) -> str:
    """A database without the state constraint, so that only the fence protects a waiting run that has an owner."""
    with psycopg.connect(any_database, autocommit=True) as connection:
        connection.execute("alter table underway.run drop constraint run_state")
    return any_database


TOKENS = ("right", "older", "newer", "swapped")


def pair(connection: Connection, situation: str, token: str) -> Batch:
    """Two runs in this situation, each with the token that a supervisor believes it to have."""
    keys = [(_put(connection, situation, number), number) for number in _numbers(connection)]
    if token == "swapped":
        (first, one), (second, two) = keys
        return [(first, two), (second, one)]
    off = {"right": 0, "older": -1, "newer": 1}[token]
    return [(run, number + off) for run, number in keys]


def _numbers(connection: Connection) -> list[int]:
    # Far enough apart that one's newer token is not the other's.
    return [[next_token(connection) for _ in range(3)][1] for _ in range(2)]


def _put(connection: Connection, situation: str, token: int) -> str:
    if situation == "missing":
        return str(uuid4())
    columns = WITHOUT_TOKEN.get(situation, SITUATIONS.get(situation, {}))
    run = insert(connection, token=token, unique_key=f"key {token}", **columns)
    if situation in ("finished", "failed", "quarantined", "cancelled", "expired"):
        assert client_queries.cancel(connection, UUID(run))
    if situation in ("finished", "expired"):
        connection.execute("update underway.finished_run set state = 'succeeded' where id = %s", [run])
    if situation == "expired":
        connection.execute("update underway.finished_run set expires_at = now() - interval '1 s' where id = %s", [run])
    if situation == "quarantined":
        connection.execute("update underway.finished_run set state = 'failed', quarantined = true where id = %s", [run])
    if situation == "failed":
        connection.execute(
            "update underway.finished_run set state = 'failed', dead_letter = 'dead' where id = %s", [run]
        )
    return run


def test_every_statement_that_writes_an_attempt_is_in_a_matrix_or_only_adds() -> None:
    writes = re.compile(
        r"\b(update|insert\s+into|delete\s+from|merge\s+into|copy|truncate)\s+underway\.(run|attempt)\b"
    )
    # A statement that calls one of our functions writes what the function writes.
    function = re.compile(r"function underway\.(\w+)\(.*?as \$\$(.*?)\$\$;", re.DOTALL)
    bodies = [body for definition in migrate.definitions() for body in function.findall(definition.sql)]
    texts = {**statements(), **dict(bodies)}
    found: set[str] = set()
    while more := {
        name
        for name, text in texts.items()
        if name not in found
        and (
            writes.search(text.lower()) or any(f"underway.{called}(" in text for called in found - statements().keys())
        )
    }:
        found |= more
    found &= statements().keys()
    assert found == FENCED.keys() | BY_SITUATION.keys() | ADDING.keys() | TESTING.keys()


@pytest.mark.parametrize("name", ADDING)
def test_a_statement_that_only_adds_does_nothing_else(name: str) -> None:
    # The row of a schedule is not a run.
    statement = re.sub(r"for update skip locked|update underway\.schedule\b", "", statements()[name].lower())
    assert not re.search(r"\b(update|delete|merge|truncate)\b", statement)


@pytest.mark.parametrize("write", FENCED_WRITES)
def test_only_the_right_token_of_our_own_running_attempt_writes(
    any_database: str, any_connection: Connection, write: FencedWrite
) -> None:
    connection = any_connection
    insert_held(connection, US)  # a run that no write names
    wrong = []

    async def all_cells() -> None:
        async with open_store(any_database, US) as store:
            for situation, token in product(SITUATIONS, TOKENS):
                batch = pair(connection, situation, token)
                before = dump(connection)
                written = await write(store, batch)
                changed = dump(connection) != before
                allowed = (situation, token) == (ALLOWED.get(write, "in progress"), "right")
                if written != ({token for _, token in batch} if allowed else set()) or changed != allowed:
                    wrong.append((situation, token, written, changed))

    asyncio.run(all_cells())
    assert wrong == []


@pytest.mark.parametrize("write", FENCED_WRITES)
def test_in_one_batch_with_all_others_only_the_right_cell_writes(
    any_database: str, any_connection: Connection, write: FencedWrite
) -> None:
    connection = any_connection
    batches = {cell: pair(connection, *cell) for cell in product(SITUATIONS, TOKENS)}
    good = batches.pop((ALLOWED.get(write, "in progress"), "right"))
    stale = [(run, token - 1) for run, token in good]  # the same runs again, each with an older token
    bad = [key for batch in batches.values() for key in batch]
    before = dump(connection)

    async def one_batch() -> set[int]:
        async with open_store(any_database, US) as store:
            return await write(store, [*bad[::2], *stale, *good, *bad[1::2]])

    written = asyncio.run(one_batch())
    assert written == {token for _, token in good}
    ours = {run for run, _ in good}
    after = dump(connection)
    for table in before:
        removed = set(before[table]) - set(after[table])
        added = set(after[table]) - set(before[table])
        assert all(any(run in row for run in ours) for row in removed)
        # Each new row is a child of a good run or belongs to a good run.
        assert all('"job": "child"' in row or any(run in row for run in ours) for row in added)
    children = sum('"job": "child"' in row for row in after["run"])
    assert children in (0, len(good))  # the stale attempts have spawned none


async def _write_by_situation(name: str, store: Store, connection: Connection, run: str) -> None:
    if name == "release_unknown":
        await store.release_unknown([])
    elif name == "expire_runs":
        await store.expire(100)
    elif name == "rehearse_renewal":
        await store.rehearse_renewal()
    elif name == "reap_runs":
        await store.reap(100)
    elif name == "promote_runs":
        await store.promote(100)
    elif name == "join_key_queue":
        await store.join_key_queue(100)
    elif name == "sweep_keys":
        await store.sweep_keys(("", ""), 100)
    elif name == "drop_run":
        await store.drop(run, int(value(connection, "select coalesce(max(token), 1) from underway.run")))
    elif name == "cancel_run":
        client_queries.cancel(connection, UUID(run))
    elif name == "cancel_job":
        client_queries.cancel_job(connection, LANE.job)
    elif name == "cancel_key":
        key = connection.execute("select unique_key from underway.run").fetchone()
        client_queries.cancel_key(connection, LANE.job, unique_key=key[0] if key else "none")
    elif name == "cancel_concurrency_key":
        client_queries.cancel_key(connection, LANE.job, concurrency_key="key")
    elif name == "redrive_run":
        with contextlib.suppress(RunCancelled):
            admin_queries.redrive(connection, UUID(run))
    elif name == "redrive_label":
        admin_queries.redrive_label(connection, "dead")
    elif name == "release_quarantined":
        admin_queries.release_quarantined(connection, LANE.job)
    else:
        await store.claim(LANES, 100, candidates=100, suspects=1)


@pytest.mark.parametrize("name", BY_SITUATION)
def test_a_statement_without_a_token_writes_only_in_its_situations(
    any_database: str, any_connection: Connection, name: str
) -> None:
    connection = any_connection
    wrong = []

    async def all_cells() -> None:
        async with open_store(any_database, US) as store:
            for situation in WITHOUT_TOKEN:
                connection.execute("truncate underway.run, underway.finished_run, underway.attempt")
                run = _put(connection, situation, next_token(connection))
                before = dump(connection)
                await _write_by_situation(name, store, connection, run)
                changed = dump(connection) != before
                if changed != (situation in BY_SITUATION[name]):
                    wrong.append((situation, changed))

    asyncio.run(all_cells())
    assert wrong == []


def test_release_unknown_leaves_the_supervisors_known_tasks_alone(database: str, connection: Connection) -> None:
    known, _ = insert_held(connection, US)
    unknown, _ = insert_held(connection, US)

    async def release() -> None:
        async with open_store(database, US) as store:
            await store.release_unknown([known])

    asyncio.run(release())
    rows = connection.execute("select id::text, state, owner, lease_expires_at, releases, crashes from underway.run")
    assert {row[0]: row[1:] for row in rows if row[0] == unknown} == {unknown: ("pending", None, None, 1, 0)}
    assert connection.execute("select state, releases from underway.run where id = %s", [known]).fetchone() == (
        "in_progress",
        0,
    )


def test_a_token_is_fenced_in_the_writing_statement_not_before_it(database: str, connection: Connection) -> None:
    """If the token were read first, another supervisor could claim the run before the write.

    The first write finds the row locked and skips it; at the second the token has changed.
    """
    run, token = insert_held(connection, US)

    async def late_write() -> tuple[set[int], set[int]]:
        async with open_store(database, US) as store:
            with psycopg.connect(database) as other_session:
                other_session.execute(
                    sql.SQL("update underway.run set token = nextval('underway.token'), owner = {}").format(
                        sql.Literal(str(OTHERS))
                    )
                )
                while_locked = await store.finish([finish(run, token)], [])
                other_session.commit()
            return while_locked, await store.finish([finish(run, token)], [])

    assert asyncio.run(late_write()) == (set(), set())
    assert connection.execute("select count(*) from underway.finished_run").fetchone() == (0,)
