"""Control of running supervisors: pause, resume, shutdown, retention, and warnings of stranded runs."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from apps import basic
from db import (
    AGES_AGO,
    IN_AN_HOUR,
    LANE,
    POLICY,
    Connection,
    claim,
    go_on,
    insert,
    insert_held,
    next_token,
    row_of,
    value,
    with_store,
)
from harness import Supervisor, eventually, states
from psycopg import sql

from underway import Context, Done, Status, To, Underway
from underway.definition.manifest import Lane
from underway.postgres import admin_queries, client_queries
from underway.postgres.supervisor_store import Lanes, Store

US = uuid4()


# Pause and resume


def test_runs_of_a_paused_queue_are_not_claimed(any_database: str) -> None:
    lanes = Lanes((Lane(queue, "job", "step"), POLICY) for queue in ("one", "two"))
    with psycopg.connect(any_database, autocommit=True) as connection:
        for crashes in (0, 1):
            insert(connection, queue="one", crashes=crashes)
        other = insert(connection, queue="two")
        assert admin_queries.pause(connection, "one")
        assert not admin_queries.pause(connection, "one")
        assert not admin_queries.resume(connection, "two")
        assert [claimed.run for claimed in claim(any_database, lanes=lanes)] == [other]
        assert admin_queries.resume(connection, "one")
        assert not admin_queries.resume(connection, "one")
        assert len(claim(any_database, lanes=lanes)) == 2


def test_pause_and_resume_are_part_of_the_callers_transaction(
    bind: Callable[[Underway], Underway], connection: Connection, database: str
) -> None:
    app = bind(basic.app)
    paused = "select array_agg(name) from underway.queue where paused"
    with psycopg.connect(database) as conn:
        assert app.pause("one", conn=conn)
        assert value(connection, paused) is None
        conn.rollback()
        assert app.pause("one", conn=conn), "the first pause was rolled back"
        conn.commit()
        assert value(connection, paused) == ["one"]
        assert app.resume("one", conn=conn)
        conn.rollback()
        assert value(connection, paused) == ["one"]
        assert app.resume("one", conn=conn)
        conn.commit()
        assert value(connection, paused) is None


def test_pausing_an_unused_queue_logs_a_warning(
    database: str, connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    app = Underway(database)
    app.job("job").step(nothing, queue="mine")
    app.queue("declared")
    insert(connection, queue="run's")
    try:
        for known in ("mine", "declared", "run's"):
            assert app.pause(known)
        assert caplog.messages == []
        assert app.pause("mien")
        assert caplog.messages == [
            "pausing unknown queue 'mien': no job, run or supervisor uses it yet; "
            "existing: 'declared', 'mine', \"run's\""
        ]
    finally:
        app.close()


def nothing(cx: Context) -> Done:
    return To.done()


def test_a_next_step_in_a_paused_queue_is_not_claimed_by_its_hand_over(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        held = [insert_held(connection, US) for _ in range(2)]
        admin_queries.pause(connection, "paused")

        async def hand_over(store: Store) -> dict[int, int | None]:
            rows = [go_on(*key, queue=queue) for key, queue in zip(held, ("paused", "other"), strict=True)]
            return await store.continue_(rows, [], [POLICY, POLICY])

        tokens = with_store(any_database, hand_over, US)
        assert tokens[held[0][1]] is None
        assert tokens[held[1][1]] is not None
        rows = [row_of(connection, "run", run) for run, _ in held]
        assert [row and (row["state"], row["owner"]) for row in rows] == [
            ("pending", None), ("in_progress", str(US)),
        ]  # fmt: skip


def test_other_queues_continue_and_a_resumed_queue_continues_at_once(
    bind: Callable[[Underway], Underway], connection: Connection, start_supervisor: Callable[..., Supervisor]
) -> None:
    app = bind(basic.app)
    app.migrate()
    assert app.pause("default")
    run = basic.numbers.enqueue(1)
    start_supervisor("basic", "--procs", "1")
    eventually(lambda: value(connection, "select count(*) from underway.supervisor where idle"))
    assert run.status() is Status.PENDING
    assert app.resume("default")
    assert run.result(20) == 1


# Shutdown


def test_one_supervisor_or_all_stop_when_asked(
    connection: Connection, start_supervisor: Callable[..., Supervisor]
) -> None:
    started = [start_supervisor("basic", "--procs", "1") for _ in range(3)]
    eventually(lambda: value(connection, "select count(*) from underway.supervisor") == 3)
    found: dict[int, UUID] = dict(connection.execute("select pid, id from underway.supervisor").fetchall())
    first, *others = started
    assert admin_queries.shut_down(connection, uuid4()) == []
    assert admin_queries.shut_down(connection, found[first.pid]) == [found[first.pid]]
    assert first.wait() == 0
    assert "asked to stop" in first.log
    assert all(supervisor.process.poll() is None for supervisor in others)
    # Also without a notification, as behind a pooler.
    connection.execute("insert into underway.stop_request select id from underway.supervisor where pid = %s",
                       [others[0].pid])  # fmt: skip
    assert others[0].wait() == 0
    assert admin_queries.shut_down(connection) == [found[others[1].pid]]
    assert others[1].wait() == 0
    assert admin_queries.present(connection, found.values()) == []
    assert value(connection, "select count(*) from underway.stop_request") == 0


def test_a_request_in_a_long_transaction_blocks_no_other_session(database: str, connection: Connection) -> None:
    async def play_it(store: Store) -> None:
        await store.register(pid=1, app="app")
        with psycopg.connect(database) as asking:
            assert admin_queries.shut_down(asking) == [US]
            async with asyncio.timeout(20):
                await store.set_idle(True)
                await store.register(pid=1, app="app")
                assert not await store.stop_requested()
        assert await store.stop_requested()
        await store.deregister()
        assert not await store.stop_requested()

    with_store(database, play_it, US)


def test_a_supervisor_stays_visible_while_the_runs_are_locked(
    connection: Connection, start_supervisor: Callable[..., Supervisor]
) -> None:
    """Otherwise a health probe would restart the supervisor, and lose its running steps, while an index is built."""
    start_supervisor("basic", "--procs", "1").until("serving")
    seen = "select seen_at from underway.supervisor"
    with connection.transaction():
        connection.execute("lock table underway.run in share mode")
        first = value(connection, seen)
        # Updates at startup and once a minute do not count.
        second = eventually(lambda: (now := value(connection, seen)) > first and now)
        eventually(lambda: value(connection, seen) > second)


# Retention


def test_expired_runs_are_removed_with_their_attempts(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        expired = [_finished(connection, "now() - interval '1 s'", minutes) for minutes in range(5)]
        kept, live = _finished(connection, "now() + interval '1 hour'", 1), insert(connection)

        async def expire(store: Store) -> list[int]:
            with _locked(any_database, expired[0]):
                turns = [await store.expire(2) for _ in range(3)]
            return [*turns, await store.expire(2), await store.expire(2)]

        assert with_store(any_database, expire) == [2, 2, 0, 1, 0]
        left = [str(run) for (run,) in connection.execute("select id from underway.runs")]
        assert sorted(left) == sorted([kept, live])
        assert connection.execute("select distinct run_id::text from underway.attempt").fetchall() == [(kept,)]


def _finished(connection: Connection, expires_at: str, minutes: int) -> str:
    run = insert(connection)
    client_queries.cancel(connection, UUID(run))
    connection.execute(
        f"update underway.finished_run set expires_at = {expires_at} - make_interval(mins => {minutes}) where id = %s",
        [run],
    )
    for _ in range(2 if minutes else 1):
        connection.execute(
            "insert into underway.attempt (run_id, token, attempt_number, finished_at, step, outcome) "
            "values (%s, %s, 1, now(), 'step', 'failed')",
            [run, next_token(connection)],
        )
    return run


def _locked(database: str, run: str) -> psycopg.Connection[Any]:
    connection = psycopg.connect(database)
    connection.execute("select from underway.finished_run where id = %s for update", [run])
    return connection


def test_a_supervisor_removes_expired_runs(connection: Connection, start_supervisor: Callable[..., Supervisor]) -> None:
    for _ in range(1200):  # more than two batches
        insert(connection, keep=timedelta(0))
    client_queries.cancel_job(connection, LANE.job)
    assert states(connection) == {"cancelled": 1200}
    start_supervisor("basic", "--procs", "1")
    eventually(lambda: states(connection) == {})


# Stranded runs


def _serving(database: str, lanes: list[Lane]) -> None:
    async def register(store: Store) -> None:
        await store.register(pid=1, app="app", lanes=lanes)

    with_store(database, register)


def test_runs_that_no_live_supervisor_serves_are_stranded(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        for step in ("a", "b", "c"):
            for minutes in range(3):
                insert(connection, step=step, due_at=sql.SQL(f"now() - interval '{minutes} minutes'"))
        suspect = insert(connection, job="suspicious", crashes=1)
        insert(connection, step="d", state="waiting", due_at=IN_AN_HOUR)
        insert_held(connection, US, step="e")
        every = [("default", "job", step) for step in "abc"] + [("default", "suspicious", "step")]
        assert _stranded(connection) == every
        # Queue, job and step are not interchangeable: a lane with the same names in another order is a different one.
        _serving(any_database, [Lane("default", "job", "b"), Lane("job", "default", "a")])
        assert _stranded(connection) == [every[0], *every[2:]]
        assert value(connection, "select count(*) from underway.stranded") == 7
        assert value(connection, "select count(*) from underway.stranded where id = %s", [suspect]) == 1
        connection.execute("update underway.supervisor set seen_at = now() - interval '31 seconds'")
        assert _stranded(connection) == every


def _stranded(connection: Connection) -> list[tuple[str, ...]]:
    return [tuple(lane) for *lane, _ in admin_queries.stranded_lanes(connection)]


def test_a_supervisor_warns_of_stranded_runs(
    connection: Connection, start_supervisor: Callable[..., Supervisor]
) -> None:
    insert(connection, job="orders", step="price", due_at=AGES_AGO, input='{"number": 1}')
    insert(connection, job="forgotten", due_at=AGES_AGO)
    insert(connection, job="fresh")
    supervisor = start_supervisor("basic", "--procs", "1")
    supervisor.until("no supervisor serves step 'step' of job 'forgotten' in queue 'default'")
    assert "'fresh'" not in supervisor.log
    assert "'orders'" not in supervisor.log
    assert value(connection, "select lanes @> '[{\"queue\": \"default\", \"job\": \"orders\", \"step\": \"send\"}]' "
                             "from underway.supervisor")  # fmt: skip
