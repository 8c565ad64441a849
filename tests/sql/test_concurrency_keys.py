"""concurrency_key: a limit on the runs of a queue with one key that execute at once; the others wait in line."""

from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4

import psycopg
import pytest
from apps import keyed
from db import (
    AGES_AGO,
    IN_AN_HOUR,
    NOW,
    Connection,
    finish,
    go_on,
    insert,
    insert_held,
    row_of,
    spawn,
    value,
    with_store,
)
from harness import Supervisor
from psycopg import IsolationLevel, sql

from underway import Run, Status, Underway
from underway.definition.manifest import Lane, Policy
from underway.postgres import client_queries
from underway.postgres.supervisor_store import Claimed, Lanes, Store
from underway.postgres.transitions import FinishRun

T = TypeVar("T")

US = uuid4()
LANES = Lanes((Lane("default", "job", step), Policy()) for step in ("step", "next"))


@pytest.fixture
def play(any_database: str) -> Callable[[Callable[[Store, Connection], Coroutine[Any, Any, None]]], None]:
    """Play a scenario with a supervisor's store and a connection of a client, on each Postgres."""

    def play(scenario: Callable[[Store, Connection], Coroutine[Any, Any, None]]) -> None:
        with psycopg.connect(any_database, autocommit=True) as connection:
            with_store(any_database, lambda store: scenario(store, connection), US)

    return play


Play = Callable[[Callable[[Store, Connection], Coroutine[Any, Any, None]]], None]


def insert_waiting(connection: Connection, key: str = "key", *, limit: int = 1, age: float = 60.0, **more: Any) -> str:
    """A run as enqueue leaves it, waiting for its key for `age` seconds."""
    due = sql.SQL("clock_timestamp() - make_interval(secs => {})").format(sql.Literal(age))
    placed = {
        "state": "waiting",
        "concurrency_key": key,
        "concurrency_limit": limit,
        "due_at": sql.SQL(due.as_string()),
        **more,
    }
    return insert(connection, **{"rank": placed["due_at"], **placed})


async def claim(store: Store, tasks: int = 100) -> list[Claimed]:
    return await store.claim(LANES, tasks, candidates=tasks, suspects=5)


async def claimed(store: Store) -> list[str]:
    return [one.run for one in await claim(store)]


def done(one: Claimed, **more: Any) -> FinishRun:
    return finish(one.run, one.token, **more)


def holders(connection: Connection) -> set[str]:
    return {run for (run,) in connection.execute("select id::text from underway.run where holds_key")}


def state(connection: Connection, run: str) -> str:
    row = row_of(connection, "run", run) or row_of(connection, "finished_run", run)
    assert row is not None
    return str(row["state"])


def test_keys_are_granted_oldest_first_and_up_to_the_limit(play: Play) -> None:
    async def scenario(store: Store, connection: Connection) -> None:
        order = [insert_waiting(connection, "two", limit=2, age=60 - n) for n in range(4)]
        single = [insert_waiting(connection, "one", age=30 - n) for n in range(3)]
        elsewhere = insert_waiting(connection, "one", queue="elsewhere")
        assert await claimed(store) == [], "no run is claimed before it has its key"
        assert await store.join_key_queue(100) == 8
        assert holders(connection) == {*order[:2], single[0], elsewhere}
        assert await store.join_key_queue(100) == 0, "runs in line do not join it again"
        first = await claim(store)
        assert [one.run for one in first] == [*order[:2], single[0]]
        assert await claimed(store) == []
        # Each run that ends grants its key to the next in line at once.
        assert await store.finish([done(first[0])], []) == {first[0].token}
        assert await claimed(store) == [order[2]]
        assert len(await store.finish([done(one) for one in first[1:]], [])) == 2
        assert await claimed(store) == [order[3], single[1]]

    play(scenario)


def test_priority_and_age_decide_the_place_in_line(play: Play) -> None:
    async def scenario(store: Store, connection: Connection) -> None:
        plain = insert_waiting(connection, age=90)
        urgent = insert_waiting(connection, age=80, priority=1, rank=sql.SQL("clock_timestamp() - interval '140 s'"))
        aged = insert_waiting(connection, age=200)
        assert await store.join_key_queue(100) == 3
        order = []
        while batch := await claim(store):
            order += [one.run for one in batch]
            await store.finish([done(one) for one in batch], [])
        assert order == [aged, urgent, plain]

    play(scenario)


def test_a_run_holds_its_key_through_retries_releases_and_lost_leases(play: Play) -> None:
    async def scenario(store: Store, connection: Connection) -> None:
        first, second = insert_waiting(connection, age=60), insert_waiting(connection, age=50)
        await store.join_key_queue(100)
        for how in ("release", "retry", "lease expiry", "unknown"):
            (held,) = await claim(store)
            assert held.run == first
            if how == "release":
                await store.continue_([go_on(held.run, held.token, step="step", queue=None, payload=None)], [])
            elif how == "retry":
                row = go_on(held.run, held.token, step="step", queue=None, payload=None, delay=3600.0)
                await store.continue_([row], [])
            elif how == "lease expiry":
                connection.execute(
                    "update underway.run set lease_expires_at = now() - interval '1 s' where owner is not null"
                )
                assert len(await store.reap(10)) == 1
            else:
                await store.release_unknown([])
            assert holders(connection) == {first}
            assert await store.join_key_queue(100) == 0
            connection.execute("update underway.run set due_at = now() where holds_key and state = 'waiting'")
            await store.promote(100)
            assert state(connection, second) == "waiting"

    play(scenario)


@pytest.mark.parametrize("end", ["failed", "quarantined", "cancelled", "released and cancelled"])
def test_every_kind_of_end_grants_the_key_to_the_next_run(play: Play, end: str) -> None:
    async def scenario(store: Store, connection: Connection) -> None:
        first, second = insert_waiting(connection, age=60), insert_waiting(connection, age=50)
        await store.join_key_queue(100)
        if end != "cancelled":
            (held,) = await claim(store)
        if end == "failed":
            await store.finish([done(held, state="failed", payload=None)], [])
        elif end == "quarantined":
            connection.execute(
                "update underway.run set lease_expires_at = now() - interval '1 s', crashes = 2 where owner is not null"
            )
            assert (await store.reap(10))[0][2]
        else:
            if end == "released and cancelled":
                await store.release_unknown([])
            assert client_queries.cancel(connection, UUID(first))
        assert holders(connection) == {second}
        assert state(connection, first) in ("failed", "cancelled")
        assert await claimed(store) == [second]

    play(scenario)


def test_cancelling_a_run_in_line_grants_no_key(play: Play) -> None:
    async def scenario(store: Store, connection: Connection) -> None:
        first, second, third = (insert_waiting(connection, age=60 - n) for n in range(3))
        await store.join_key_queue(100)
        assert client_queries.cancel(connection, UUID(second))
        assert holders(connection) == {first}
        (held,) = await claim(store)
        await store.finish([done(held)], [])
        assert await claimed(store) == [third]

    play(scenario)


def test_a_run_keeps_a_key_that_its_next_step_shares(play: Play) -> None:
    async def scenario(store: Store, connection: Connection) -> None:
        first, second = insert_waiting(connection, age=60), insert_waiting(connection, age=50)
        await store.join_key_queue(100)
        (held,) = await claim(store)
        await store.continue_([go_on(held.run, held.token, concurrency_key="key", concurrency_limit=1)], [])
        assert holders(connection) == {first}
        (held,) = await claim(store)
        assert (held.run, held.lane.step) == (first, "next")
        await store.finish([done(held)], [])
        assert holders(connection) == {second}

    play(scenario)


@pytest.mark.parametrize("next_key", [None, "other", "same, other queue"])
def test_moving_to_a_step_with_another_key_or_none_grants_the_old_key(play: Play, next_key: str | None) -> None:
    async def scenario(store: Store, connection: Connection) -> None:
        first, second = insert_waiting(connection, age=60), insert_waiting(connection, age=50)
        await store.join_key_queue(100)
        (held,) = await claim(store)
        place = (
            {"concurrency_key": "key", "queue": "q2"}
            if next_key == "same, other queue"
            else {"concurrency_key": next_key}
        )
        await store.continue_([go_on(held.run, held.token, concurrency_limit=1, **place)], [])
        assert state(connection, first) == "pending"
        assert holders(connection) == {second} | ({first} if next_key else set())

    play(scenario)


@pytest.mark.parametrize("delay", [0.0, 3600.0])
def test_a_run_whose_next_step_has_a_taken_key_waits_in_line(play: Play, delay: float) -> None:
    async def scenario(store: Store, connection: Connection) -> None:
        holder = insert_waiting(connection, "taken")
        await store.join_key_queue(100)
        (held,) = await claim(store)
        free, token = insert_held(connection, US)
        await store.continue_([go_on(free, token, concurrency_key="taken", concurrency_limit=1, delay=delay)], [])
        assert holders(connection) == {holder}
        if delay:
            later = insert_waiting(connection, "taken", age=1)
            assert await store.join_key_queue(100) == 1
            connection.execute("update underway.run set due_at = now() where id = %s", [free])
            assert await store.join_key_queue(100) == 1
        await store.finish([done(held)], [])
        assert await claimed(store) == [later if delay else free]

    play(scenario)


def test_a_delayed_run_joins_the_line_only_when_it_is_due(play: Play) -> None:
    async def scenario(store: Store, connection: Connection) -> None:
        delayed = insert_waiting(connection, due_at=IN_AN_HOUR, rank=None, priority=600)
        now = [insert_waiting(connection, age=60 - n) for n in range(2)]
        await store.join_key_queue(100)
        (held,) = await claim(store)
        await store.finish([done(held)], [])
        assert holders(connection) == {now[1]}, "a high priority does not shorten a delay"
        (held,) = await claim(store)
        await store.finish([done(held)], [])
        assert holders(connection) == set()
        connection.execute("update underway.run set due_at = now()")
        assert await store.join_key_queue(100) == 1
        assert await claimed(store) == [delayed]
        row = row_of(connection, "run", delayed)
        assert row is not None
        assert row["due_at"] is not None

    play(scenario)


def test_a_locked_key_delays_only_its_own_runs(play: Play, any_database: str) -> None:
    async def scenario(store: Store, connection: Connection) -> None:
        first, second = insert_waiting(connection, "locked", age=60), insert_waiting(connection, "locked", age=50)
        others = [insert_waiting(connection, "other", age=40), insert_waiting(connection, "other", age=30)]
        await store.join_key_queue(100)
        batch = await claim(store)
        assert [one.run for one in batch] == [first, others[0]]
        with psycopg.connect(any_database) as other_session:
            query = "select pg_advisory_xact_lock(hashtextextended('default' || chr(31) || 'locked', 0))"
            other_session.execute(query)
            late = insert_waiting(connection, "locked", age=70)
            notified: list[bool] = []
            store.on_locked_keys = lambda: notified.append(True)
            # The results are committed nevertheless.
            assert len(await store.finish([done(one) for one in batch], [])) == 2
            assert notified == [True]
            assert store.locked_keys == {("default", "locked")}
            assert holders(connection) == {others[1]}
            assert await store.join_key_queue(100) == 1, "the locked key is tried again, but the late run does not join"
            assert holders(connection) == {others[1]}
        assert store.locked_keys == {("default", "locked")}
        await store.join_key_queue(100)
        assert store.locked_keys == set()
        assert holders(connection) == {others[1], late}
        assert state(connection, second) == "waiting"

    play(scenario)


def test_a_key_that_is_being_granted_is_locked_until_the_commit(play: Play, any_database: str) -> None:
    async def scenario(store: Store, connection: Connection) -> None:
        first, _ = insert_waiting(connection, age=60), insert_waiting(connection, age=50)
        with psycopg.connect(any_database) as granter:
            grant = "select underway.grant_keys(array['default'], array['key'])"
            assert value(granter, grant) is None
            assert value(connection, grant) == [["default", "key"]]
            assert await store.join_key_queue(100) == 0
            await store.sweep_keys(("", ""), 100)
            assert store.locked_keys == {("default", "key")}
            assert holders(connection) == set()
        assert holders(connection) == {first}
        await store.join_key_queue(100)
        assert holders(connection) == {first}

    play(scenario)


def test_a_sweep_grants_a_key_that_became_free_unnoticed(play: Play) -> None:
    async def scenario(store: Store, connection: Connection) -> None:
        firsts = [insert_waiting(connection, f"key{n}", age=60) for n in range(5)]
        seconds = [insert_waiting(connection, f"key{n}", age=50) for n in range(5)]
        await store.join_key_queue(100)
        connection.execute("delete from underway.run where id = any(%s::uuid[])", [firsts[1:4]])
        assert await store.sweep_keys(("", ""), 2) == ("default", "key1")
        assert holders(connection) == {firsts[0], seconds[1], firsts[4]}
        assert await store.sweep_keys(("default", "key1"), 2) == ("default", "key3")
        assert holders(connection) == {firsts[0], *seconds[1:4], firsts[4]}
        assert await store.sweep_keys(("default", "key3"), 2) == ("", "")
        assert holders(connection) == {firsts[0], *seconds[1:4], firsts[4]}

    play(scenario)


def test_a_sweep_uses_the_limit_of_the_runs_in_line(play: Play) -> None:
    async def scenario(store: Store, connection: Connection) -> None:
        first = insert_waiting(connection, holds_key=True, due_at=IN_AN_HOUR, rank=AGES_AGO)
        second = insert_waiting(connection, limit=2, due_at=None, rank=NOW)
        await store.sweep_keys(("", ""), 100)
        assert holders(connection) == {first, second}

    play(scenario)


def test_cancelling_the_holders_of_many_keys_takes_a_bounded_number_of_locks(play: Play, any_database: str) -> None:
    """(All sessions share a lock table of some ten thousand entries: a cancel of more keys failed.)"""

    async def scenario(store: Store, connection: Connection) -> None:
        connection.execute(
            "insert into underway.run"
            " (id, queue, job, step, keep, due_at, rank, input, state, holds_key, concurrency_key)"
            " select gen_random_uuid(), 'default', 'many', 'step', '1 day', now(), now(), '1', 'pending', true,"
            " 'key' || n from generate_series(1, 3000) n"
        )
        seconds = {insert_waiting(connection, f"key{n}", due_at=None, rank=NOW) for n in range(1, 3001, 500)}
        with psycopg.connect(any_database) as client:
            assert client_queries.cancel_job(client, "many") == 3000
            locks = "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"
            assert value(client, locks) == 1000
        await store.sweep_keys(("", ""), 100)
        assert holders(connection) == seconds

    play(scenario)


@pytest.mark.parametrize("level", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
def test_a_transaction_with_an_old_snapshot_grants_no_key(play: Play, any_database: str, level: IsolationLevel) -> None:
    async def scenario(store: Store, connection: Connection) -> None:
        first, second = insert_waiting(connection, limit=2, age=60), insert_waiting(connection, limit=2, age=50)
        third, fourth = insert_waiting(connection, limit=2, age=40), insert_waiting(connection, limit=2, age=30)
        await store.join_key_queue(100)
        (_, held) = await claim(store)
        connection.execute(
            "update underway.run set state = 'pending', owner = null, lease_expires_at = null where id = %s", [first]
        )
        with psycopg.connect(any_database) as client:
            client.isolation_level = level
            client.execute("select count(*) from underway.run")
            await store.finish([done(held)], [])
            assert holders(connection) == {first, third}
            assert client_queries.cancel(client, UUID(first))
        assert holders(connection) == {third}
        assert second == held.run
        await store.sweep_keys(("", ""), 100)
        assert holders(connection) == {third, fourth}

    play(scenario)


def test_spawned_runs_with_a_key_wait_in_line(play: Play) -> None:
    async def scenario(store: Store, connection: Connection) -> None:
        parent, token = insert_held(connection, US)
        children = [
            spawn(parent=token, concurrency_key="key", concurrency_limit=1, job="job", step="step") for _ in range(2)
        ]
        late = spawn(parent=token, concurrency_key="late", concurrency_limit=1, delay=3600.0)
        await store.finish([finish(parent, token)], [*children, late])
        assert state(connection, children[0]["id"]) == "waiting"
        await store.join_key_queue(100)
        assert await claimed(store) == [children[0]["id"]]
        assert holders(connection) == {children[0]["id"]}

    play(scenario)


def test_runs_without_a_key_are_not_affected(play: Play) -> None:
    async def scenario(store: Store, connection: Connection) -> None:
        plain, due = insert(connection), insert(connection, state="waiting", due_at=AGES_AGO)
        assert await store.join_key_queue(100) == 0
        assert await store.promote(100) == 1
        assert set(await claimed(store)) == {plain, due}
        assert value(connection, "select count(*) from pg_locks where locktype = 'advisory'") == 0

    play(scenario)


# Clients


@pytest.fixture
def app(database: str, bind: Callable[[Underway], Underway]) -> Underway:
    app = bind(keyed.app)
    app.sync()
    return app


def placed(connection: Connection, run_id: UUID) -> tuple[Any, ...]:
    row = row_of(connection, "run", str(run_id))
    assert row is not None
    return row["state"], row["concurrency_key"], row["concurrency_limit"], row["rank"] is None, row["holds_key"]


def test_enqueue_waits_in_line_and_takes_no_lock(connection: Connection, app: Underway) -> None:
    run_ids = [
        keyed.pairs.enqueue({"account": 7}).id,
        *(run.id for run in keyed.pairs.enqueue_many([{"account": 7}, {"account": 7}])),
        value(connection, "select underway.enqueue('pairs', '{\"account\": 7}')"),
    ]
    assert {placed(connection, run_id) for run_id in run_ids} == {("waiting", "7", 2, False, False)}
    # In a bulk enqueue one run per key is left to the promoter; the others join the line directly.
    assert value(connection, "select count(*) from underway.run where due_at is null") == 1
    hour = timedelta(hours=1)
    delayed = [
        keyed.pairs.enqueue({"account": 7}, delay=hour).id,
        keyed.pairs.enqueue_many([{"account": 7}], delay=hour)[0].id,
        value(connection, "select underway.enqueue('pairs', '{\"account\": 7}', delay => '1 hour')"),
    ]
    assert {placed(connection, run_id) for run_id in delayed} == {("waiting", "7", 2, True, False)}


def test_a_concurrency_key_given_at_enqueue(connection: Connection, app: Underway) -> None:
    one = keyed.syncs.enqueue({"account": 7}, concurrency_key="mine")
    two = keyed.free.enqueue({"a": "x"}, concurrency_key="{a}")
    three = value(connection, "select underway.enqueue('free', '{}', concurrency_key => 'k')")
    assert [placed(connection, run_id)[:3] for run_id in (one.id, two.id, three)] == [
        ("waiting", "mine", 1),
        ("waiting", "x", 1),
        ("waiting", "k", 1),
    ]


def test_a_unique_key_and_a_concurrency_key_together(connection: Connection, app: Underway) -> None:
    first = keyed.both.enqueue({"account": 1, "order": 1})
    assert keyed.both.enqueue({"account": 1, "order": 1}) == first
    assert keyed.both.enqueue({"account": 1, "order": 2}).created
    keys = connection.execute("select unique_key, concurrency_key from underway.run order by 1").fetchall()
    assert keys == [("1/1", "1"), ("1/2", "1")]


# With supervisors


def test_freed_keys_are_granted_in_order(
    connection: Connection, app: Underway, start_supervisor: Callable[..., Supervisor]
) -> None:
    start_supervisor("keyed", "--procs", "2").until("serving")
    runs = keyed.syncs.enqueue_many({"account": n % 2, "seconds": 0.03} for n in range(30))
    for run in runs:
        assert run.wait(30) is Status.SUCCEEDED
    overtaken = connection.execute(
        "select count(*) from ("
        "  select r.id, lag(r.id) over (partition by r.concurrency_key order by started_at) as previous"
        "  from underway.attempt a join underway.finished_run r on r.id = a.run_id"
        ") a where previous > id"
    ).fetchone()
    assert overtaken == (0,), "at limit 1 they start in the order in which they were enqueued"


def test_runs_with_keys_at_their_steps_all_end(
    connection: Connection, app: Underway, start_supervisor: Callable[..., Supervisor]
) -> None:
    supervisor = start_supervisor("keyed", "--until-idle")
    runs: list[Run[Any]] = [
        *keyed.same.enqueue_many({"account": n % 3} for n in range(12)),
        *keyed.other.enqueue_many({"to": {"account": n % 3}} for n in range(12)),
        keyed.crashing.enqueue({"account": "c", "crash": True}),
        keyed.crashing.enqueue({"account": "c"}),
    ]
    misfit = keyed.other.enqueue({"to": {}})
    assert supervisor.wait(60) == 0
    assert [run.status() for run in runs] == [Status.SUCCEEDED] * 24 + [Status.FAILED, Status.SUCCEEDED]
    # The key of the next step cannot be computed, so the attempt fails and says so.
    assert misfit.status() is Status.FAILED
    assert "needs the field to.account" in (misfit.attempts()[0].error or "")
    assert value(connection, "select count(*) from underway.run") == 0


def test_the_promoter_retries_a_key_that_another_session_had_locked(
    database: str, connection: Connection, app: Underway, start_supervisor: Callable[..., Supervisor]
) -> None:
    start_supervisor("keyed", "--procs", "1").until("serving")
    with psycopg.connect(database) as other_session:
        other_session.execute("select pg_advisory_xact_lock(hashtextextended('default' || chr(31) || '1', 0))")
        locked, free = keyed.syncs.enqueue({"account": 1}), keyed.syncs.enqueue({"account": 2})
        assert free.wait(20) is Status.SUCCEEDED
        assert locked.status() is Status.WAITING
    assert locked.wait(20) is Status.SUCCEEDED
