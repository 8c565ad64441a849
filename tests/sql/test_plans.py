"""Postgres executes the supervisor's statements by index, whatever the table holds, with or without statistics.

No other test detects a plan that reads the backlog, which makes every claim a hundred times slower.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from db import LANES, Connection, claim, finish, go_on, open_store, spawn, value
from harness import eventually
from psycopg import sql
from psycopg.rows import TupleRow

from underway.definition.manifest import Lane, Placement, Policy
from underway.postgres import inspection, schedule_queries
from underway.postgres.arrays import Int8s, UUIDs
from underway.postgres.queries import statements
from underway.postgres.reconnecting import STATEMENT_SECONDS, ReconnectingConnection
from underway.postgres.supervisor_store import Lanes, Renewal, Store

US = uuid4()

Plan = dict[str, Any]

_PLACEHOLDER = re.compile(r"%\((\w+)\)s")


class ExplainingConnection(ReconnectingConnection):
    """A supervisor's connection that fetches the plan of each statement instead of its rows.

    As on a supervisor's connection, statements are prepared at their first use and keep that plan.
    """

    def __init__(self, conninfo: str, options: str = "") -> None:
        super().__init__(conninfo)
        self._explain = f"explain (format json{options}) execute "
        self._prepared: set[str] = set()
        self.plans: dict[str, Plan] = {}

    async def fetch(
        self, statement: str, parameters: Mapping[str, Any] | None = None, *, seconds: float = STATEMENT_SECONDS
    ) -> list[TupleRow]:
        connection = await self.open()
        given = parameters or {}
        names = [name for name in dict.fromkeys(_PLACEHOLDER.findall(statements()[statement])) if name in given]
        if statement not in self._prepared:
            numbered = _PLACEHOLDER.sub(lambda match: f"${names.index(match[1]) + 1}", statements()[statement])
            await connection.execute(f"prepare {statement} as {numbered.replace('%%', '%')}")
            self._prepared.add(statement)
        values = sql.SQL(", ").join(sql.Literal(given[name]) for name in names)
        arguments = sql.SQL("({})").format(values) if names else sql.SQL("")
        cursor = await connection.execute(
            sql.SQL("{}{}{}").format(sql.SQL(self._explain), sql.Identifier(statement), arguments)
        )
        row = await cursor.fetchone()
        assert row is not None
        self.plans[statement] = row[0][0]["Plan"]
        return []


async def _claim(store: Store, batch: list[tuple[str, int]]) -> object:
    served = [(Lane("default", f"job{n}", "step"), Policy()) for n in range(20)]
    return await store.claim(Lanes(served), 50, candidates=200, suspects=1)


async def _finish(store: Store, batch: list[tuple[str, int]]) -> object:
    return await store.finish([finish(*key) for key in batch], [spawn(parent=token) for _, token in batch])


async def _continue(store: Store, batch: list[tuple[str, int]]) -> object:
    return await store.continue_([go_on(*key) for key in batch], [])


async def _renew(store: Store, batch: list[tuple[str, int]]) -> object:
    return await store.renew([Renewal(run, token, 60.0, None) for run, token in batch])


async def _drop(store: Store, batch: list[tuple[str, int]]) -> object:
    return await store.drop(*batch[0])


async def _owned(store: Store, batch: list[tuple[str, int]]) -> object:
    return await store.owned([run for run, _ in batch])


async def _lock(store: Store, batch: list[tuple[str, int]]) -> object:
    run, token = batch[0]
    return await store._work.fetch("lock_run", {"id": run, "token": token, "owner": US})


async def _recorded(store: Store, batch: list[tuple[str, int]]) -> object:
    return await store.recorded(batch)


async def _claimed(store: Store, batch: list[tuple[str, int]]) -> object:
    return await store.release_unknown([])  # type: ignore[func-returns-value]


async def _release_unknown(store: Store, batch: list[tuple[str, int]]) -> object:
    runs, tokens = zip(*batch, strict=True)
    parameters = {"owner": US, "ids": UUIDs(runs), "tokens": Int8s(tokens)}
    return await store._leases.fetch("release_unknown", parameters)


async def _rehearse(store: Store, batch: list[tuple[str, int]]) -> object:
    return await store._work.fetch("rehearse_renewal")


async def _reap(store: Store, batch: list[tuple[str, int]]) -> object:
    return await store.reap(500)


async def _cancel_requests(store: Store, batch: list[tuple[str, int]]) -> object:
    return await store.cancel_requests()


async def _paused_queues(store: Store, batch: list[tuple[str, int]]) -> object:
    return await store.paused_queues()


async def _still_here(store: Store, batch: list[tuple[str, int]]) -> object:
    return await store._work.fetch("still_here", {"id": store._owner})


async def _expire(store: Store, batch: list[tuple[str, int]]) -> object:
    return await store.expire(500)


async def _promote(store: Store, batch: list[tuple[str, int]]) -> object:
    return await store.promote(1000)


async def _fire(store: Store, batch: list[tuple[str, int]]) -> object:
    now = datetime.now(UTC)
    schedule = schedule_queries.Upcoming("job1", "default", "@daily", "UTC", "last", now, now)
    runs = [(uuid4(), now)]
    return await schedule_queries.fire(store._work, schedule, runs, now, "step", Placement())


async def _join_key_queue(store: Store, batch: list[tuple[str, int]]) -> object:
    store.locked_keys = {("default", run) for run, _ in batch}
    return await store.join_key_queue(1000)


async def _sweep(store: Store, batch: list[tuple[str, int]]) -> object:
    return await store.sweep_keys(("default", "key7"), 500)


USES: dict[str, Callable[[Store, list[tuple[str, int]]], Awaitable[object]]] = {
    "claim_tasks": _claim,
    "finish_runs": _finish,
    "continue_runs": _continue,
    "renew_leases": _renew,
    "drop_run": _drop,
    "owned_runs": _owned,
    "lock_run": _lock,
    "recorded_attempts": _recorded,
    "claimed_runs": _claimed,
    "release_unknown": _release_unknown,
    "rehearse_renewal": _rehearse,
    "reap_runs": _reap,
    "promote_runs": _promote,
    "fire_schedule": _fire,
    "cancel_requests": _cancel_requests,
    "paused_queues": _paused_queues,
    "still_here": _still_here,
    "expire_runs": _expire,
    "join_key_queue": _join_key_queue,
    "sweep_keys": _sweep,
}


def nodes(plan: Plan) -> Iterator[Plan]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def load(connection: Connection, count: int, columns: str, values: str) -> None:
    """Inserts many runs; `n` is the number of each."""
    connection.execute(
        f"insert into underway.run (id, queue, step, keep, due_at, rank, input, {columns}) "
        f"select gen_random_uuid(), 'default', 'step', '1 day', now(), now() - n * interval '1 s', '{{}}', {values} "
        f"from generate_series(1, {count}) n"
    )


def load_keyed(connection: Connection, count: int, values: str) -> None:
    """Inserts many runs in line for keys, each with its own due time."""
    connection.execute(
        f"insert into underway.run (id, queue, step, keep, rank, input, job, state, due_at, concurrency_key) "
        f"select gen_random_uuid(), 'default', 'step', '1 day', now() - n * interval '1 s', '{{}}', {values} "
        f"from generate_series(1, {count}) n"
    )


def fill(connection: Connection) -> None:
    """Inserts a backlog of runs of every kind."""
    load(connection, 10_000, "job, state", "'job' || n % 40, 'pending'")
    load(connection, 10_000, "job, state", "'job' || n % 40, 'waiting'")
    load(connection, 2_000, "job, state, crashes", "'job' || n % 40, 'pending', 1")
    held = f"'job' || n % 40, 'in_progress', '{US}', now() + n * interval '1 s', n"
    in_line = "'job', 'waiting', case n % 3 when 0 then now() end, 'key' || n % 1000"
    load_keyed(connection, 5_000, in_line)
    load(connection, 2_000, "job, state, owner, lease_expires_at, token", held)


async def explain_all(store: Store, batch: list[tuple[str, int]], *sessions: ExplainingConnection) -> dict[str, Plan]:
    for use in USES.values():
        await use(store, batch)
    plans: dict[str, Plan] = {}
    for session in sessions:
        plans |= session.plans
    assert plans.keys() == USES.keys()
    return plans


def check_plans(plans: dict[str, Plan], when: object) -> None:
    # A claim reads its lanes and its suspects each in the order of their own index.
    probes = [node["Index Name"] for node in nodes(plans["claim_tasks"]) if node.get("Alias") in ("p", "p_1")]
    assert sorted(probes) == ["run_lane", "run_suspect"]
    # Candidates are locked one by one: a candidate that another claim has changed is rechecked alone.
    (locking,) = [node for node in nodes(plans["claim_tasks"]) if node["Node Type"] == "LockRows"]
    assert re.fullmatch(r"\(ctid = \w+\.ctid\)", locking["Plans"][0].get("TID Cond", ""))
    for name, plan in plans.items():
        reading = [node for node in nodes(plan) if node.get("Relation Name") in ("run", "attempt", "finished_run")]
        kinds = {node["Node Type"] for node in reading} - {"ModifyTable"}
        assert kinds <= {"Index Scan", "Index Only Scan", "Tid Scan"}, (when, name, kinds)
        # By a condition: reading an index from end to end costs as much as reading the table.
        for node in reading:
            if node["Node Type"].startswith("Index"):
                partial = ("run_in_progress", "run_waiting", "run_cancel_requested", "run_key_due")
                assert "Index Cond" in node or node["Index Name"] in partial, (when, name, node)


def test_no_statement_reads_through_the_runs(any_database: str) -> None:
    """Neither with a plan made for the empty table nor with a later one, with or without statistics."""
    query = "select id::text, token from underway.run where state = 'in_progress' order by random() limit %s"

    async def explain_before_and_after(connection: Connection) -> None:
        old, new = ExplainingConnection(any_database), ExplainingConnection(any_database)
        old_store, new_store = (Store(session, session, US, "testhost") for session in (old, new))
        try:
            check_plans(await explain_all(old_store, [(str(uuid4()), 1)], old), "empty")
            fill(connection)
            for statistics in ("never analysed", "analysed"):
                if statistics == "analysed":
                    connection.execute("analyze underway.run")
                for size in (1, 200):
                    batch = connection.execute(query, [size]).fetchall()
                    check_plans(await explain_all(old_store, batch, old), (statistics, size, "old session"))
                    check_plans(await explain_all(new_store, batch, new), (statistics, size, "new session"))
        finally:
            await old.close()
            await new.close()

    with psycopg.connect(any_database, autocommit=True) as connection:
        connection.execute("alter table underway.run set (autovacuum_enabled = off)")
        asyncio.run(explain_before_and_after(connection))


@pytest.mark.parametrize("analysed", [False, True], ids=["never analysed", "analysed"])
def test_a_claim_touches_few_pages_beside_a_hundred_times_the_backlog(any_database: str, analysed: bool) -> None:
    async def touched(connection: Connection) -> list[int]:
        session = ExplainingConnection(any_database, ", analyze, buffers")
        pages = []
        try:
            for backlog in (300, 29_700):
                load(connection, backlog, "job, state", "'job', 'pending'")
                if analysed:
                    connection.execute("analyze underway.run")
                await Store(session, session, US, "testhost").claim(LANES, 50, candidates=50, suspects=1)
                plan = session.plans["claim_tasks"]
                assert plan["Actual Rows"] == 50
                pages.append(int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]))
        finally:
            await session.close()
        return pages

    with psycopg.connect(any_database, autocommit=True) as connection:
        connection.execute("alter table underway.run set (autovacuum_enabled = off)")
        few, many = asyncio.run(touched(connection))
    assert many <= 1.5 * few
    assert many <= MAX_PAGES


@pytest.mark.parametrize("analysed", [False, True], ids=["never analysed", "analysed"])
def test_stranded_lanes_are_found_with_one_probe_per_lane(any_database: str, analysed: bool) -> None:
    async def touched(connection: Connection) -> int:
        session = ExplainingConnection(any_database, ", analyze, buffers")
        try:
            load(connection, 50_000, "job, state", "'job' || n % 10, 'pending'")
            if analysed:
                connection.execute("analyze underway.run")
            await Store(session, session, US, "testhost").stranded_lanes()
            plan = session.plans["long_stranded_lanes"]
            found = [node["Actual Rows"] for node in nodes(plan) if node["Node Type"] == "Recursive Union"]
            assert sorted(found) == [0, 10]  # suspects, and the others
            return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
        finally:
            await session.close()

    with psycopg.connect(any_database, autocommit=True) as connection:
        connection.execute("alter table underway.run set (autovacuum_enabled = off)")
        assert asyncio.run(touched(connection)) < 200


def test_thirty_thousand_runs_in_line_for_one_key_delay_no_statement(any_database: str) -> None:
    """Neither claims nor promotions nor the grant of the key read more pages."""

    async def touched(connection: Connection) -> dict[str, list[int]]:
        session = ExplainingConnection(any_database, ", analyze, buffers")
        store = Store(session, session, US, "testhost")
        pages: dict[str, list[int]] = {}
        try:
            for in_line in (300, 29_700):
                load_keyed(connection, in_line, "'job', 'waiting', null::timestamptz, 'one key'")
                load(connection, 50, "job, state", "'job', 'pending'")
                await store.claim(LANES, 50, candidates=50, suspects=1)
                await store.promote(1000)
                await store.sweep_keys(("", ""), 500)
                # The holder is deleted, and its key is granted.
                connection.execute("delete from underway.run where holds_key")
                store.locked_keys = {("default", "one key")}
                await store.join_key_queue(1000)
                assert value(connection, "select count(*) from underway.run where holds_key") == 1
                for name, plan in session.plans.items():
                    pages.setdefault(name, []).append(int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]))
        finally:
            await session.close()
        return pages

    with psycopg.connect(any_database, autocommit=True) as connection:
        connection.execute("alter table underway.run set (autovacuum_enabled = off)")
        pages = asyncio.run(touched(connection))
    for name, (few, many) in pages.items():
        assert many <= 1.5 * few + 30, (name, few, many)
        assert many <= MAX_PAGES, (name, few, many)


def test_a_cancel_by_concurrency_key_reads_only_the_runs_with_the_key(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        load(connection, 20_000, "job, state, concurrency_key, holds_key", "'job', 'pending', 'key' || n % 5000, true")
        connection.execute("analyze underway.run")
        found = "select array_agg(r.id) from underway.run r where r.job = 'job' and r.concurrency_key = 'key7'"
        ((explanation,),) = connection.execute(f"explain (analyze, buffers, format json) {found}").fetchall()
        plan = explanation[0]["Plan"]
        assert {node["Index Name"] for node in nodes(plan) if "Index Name" in node} == {"run_job_key"}
        assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 20
        assert value(connection, "select underway.cancel_concurrency_key('job', 'key7')") == 4


def test_the_known_labels_cost_one_probe_each(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        connection.execute(
            "insert into underway.finished_run (id, created_at, expires_at, keep, attempts, crashes, releases, state,"
            " priority, quarantined, queue, job, step, dead_letter, finished_at)"
            " select gen_random_uuid(), now(), now(), '1 day', 1, 0, 0, 'failed', 0, false, 'default', 'job', 'step',"
            " nullif('label' || n % 4, 'label3'), now() from generate_series(1, 20000) n"
        )
        explained = sql.SQL("explain (analyze, buffers, format json) ") + sql.SQL(statements()["known_labels"])
        ((explanation,),) = connection.execute(explained).fetchall()
        plan = explanation[0]["Plan"]
    reading = [node for node in nodes(plan) if node.get("Relation Name") == "finished_run"]
    assert {node["Index Name"] for node in reading} == {"finished_run_dead_letter"}
    assert plan["Actual Rows"] == 3
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 50


def test_dead_rows_delay_no_statement_while_a_snapshot_is_held(any_database: str) -> None:
    """The promoter and retention can start behind the dead index entries of rows that were due."""
    waiting = (
        "insert into underway.run (id, job, step, queue, state, keep, due_at, rank, input) select gen_random_uuid(),"
    )
    waiting += " 'job', 'step', 'default', 'waiting', '1 day', now() - interval '1 minute', now(), '1'"
    finished = (
        "insert into underway.finished_run (id, created_at, expires_at, keep, attempts, crashes, releases, state,"
    )
    finished += (
        " priority, queue, job, step) select gen_random_uuid(), now(), now() - interval '1 minute', '1 day', 0, 0, 0,"
    )
    finished += " 'failed', 0, 'default', 'job', 'step'"

    async def touched(connection: Connection) -> dict[str, int]:
        since = value(connection, "select extract(epoch from now())::float8")
        session = ExplainingConnection(any_database, ", analyze, buffers")
        try:
            for name in ("seconds_until_due", "promote_runs", "join_key_queue", "expire_runs"):
                given = {"since": since, "limit": 500, "passing_over": 0, "queues": [], "keys": []}
                await session.fetch(name, given)
        finally:
            await session.close()
        return {name: plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] for name, plan in session.plans.items()}

    with psycopg.connect(any_database, autocommit=True) as connection, psycopg.connect(any_database) as other_session:
        other_session.execute("set transaction isolation level repeatable read")
        other_session.execute("select from underway.run")
        for table, insert in (("run", waiting), ("finished_run", finished)):
            connection.execute(f"{insert} from generate_series(1, 20000)")
            connection.execute(f"delete from underway.{table}")
        pages = asyncio.run(touched(connection))
    assert max(pages.values()) < 50, pages


# A claim of 50 touches 11 to 15 per run: to find it, and to write a new row version and its index entries.
MAX_PAGES = 1000


@pytest.mark.parametrize("held", [8, 64])
def test_renewals_touch_no_index(any_database: str, held: int) -> None:
    """They are heap-only updates: with an index on the lease, each would insert into all indexes."""
    turns = 20
    with psycopg.connect(any_database, autocommit=True) as connection:
        connection.execute("alter table underway.run set (autovacuum_enabled = off)")
        load(connection, held, "job, state", "'job', 'pending'")
        batch = [(run.run, run.token) for run in claim(any_database, held, owner=US)]
        assert len(batch) == held
        # Right after a large claim, some runs still move to a page with room for a second row version.
        asyncio.run(_renew_often(any_database, US, batch, 4))
        before = _settled_updates(connection, 5 * held)
        asyncio.run(_renew_often(any_database, US, batch, turns))
        after = _settled_updates(connection, 5 * held + turns * held)
        assert after - before == turns * held


async def _renew_often(database: str, owner: UUID, batch: list[tuple[str, int]], turns: int) -> None:
    async with open_store(database, owner) as store:
        for _ in range(turns):
            assert len(await store.renew([Renewal(run, token, 60.0, None) for run, token in batch])) == len(batch)
    # A backend reports its counts at the latest when it ends, and it is ending now.


def _settled_updates(connection: Connection, updates: int) -> int:
    """The number of heap-only updates, once Postgres has counted all `updates`."""
    query = "select n_tup_upd = %s from pg_stat_user_tables where relid = 'underway.run'::regclass"
    eventually(lambda: value(connection, query, [updates]))
    return int(value(connection, "select n_tup_hot_upd from pg_stat_user_tables where relname = 'run'"))


@pytest.mark.parametrize("analysed", [False, True], ids=["never analysed", "analysed"])
def test_unsuccessful_runs_are_listed_without_reading_the_others(any_database: str, analysed: bool) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        connection.execute("alter table underway.finished_run set (autovacuum_enabled = off)")
        connection.execute(
            "insert into underway.finished_run (id, created_at, expires_at, keep, attempts, crashes, releases, "
            "priority, state, queue, job, step) select gen_random_uuid(), now(), now(), '1 day', 0, 0, 0, 0, "
            "case n when 7 then 'failed' when 8 then 'cancelled' else 'succeeded' end, 'default', 'job', 'step' "
            "from generate_series(1, 20000) n"
        )
        if analysed:
            connection.execute("analyze underway.finished_run")
        for state, job in (("failed", None), ("cancelled", None), ("failed", "job"), ("failed", "unknown")):
            given = {"state": state, "job": job, "queue": None, "stranded": False, "limit": 20}
            whole = {"live": 0, "finished": 0, "unsuccessful": inspection.SEARCH_LIMIT}
            explain = sql.SQL("explain (analyze, buffers, format json) ")
            row = connection.execute(explain + sql.SQL(statements()["list_runs"]), {**given, **whole}).fetchone()
            assert row is not None
            plan = row[0][0]["Plan"]
            assert plan["Actual Rows"] == (0 if job == "unknown" else 1)
            assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 20
            assert len(inspection.list_runs(connection, state=state, job=job, limit=20)) == plan["Actual Rows"]
            assert inspection.all_looked_at(connection, state)
