"""No two statements of underway deadlock, and no statement of a supervisor waits for a row lock (promise 14)."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from db import LANE, LANES, POLICY, Connection, ago, finish, go_on, insert, open_store, value
from harness import eventually
from interleaving import US, Interleaving, Side, Statement

from underway import Context, Done, To, Underway
from underway.definition.manifest import Placement
from underway.ids import new_id
from underway.postgres import admin_queries, client_queries, schedule_queries
from underway.postgres.reconnecting import DatabaseUnavailable
from underway.postgres.supervisor_store import Renewal
from underway.postgres.transitions import Attempt, continue_parameters, finish_parameters

KEYS = [f"{kind} {n}" for n in (1, 0, 2) for kind in ("new", "failed", "running", "quarantined")]
KEYED = Placement(unique_key="{}", concurrency_key="{}")


def by_supervisor(act: Callable[[Side], Any]) -> Callable[[Side], Any]:
    return lambda side: side.await_(act(side))


def in_step(statement: str, parameters: Callable[[Side], dict[str, Any]]) -> Callable[[Side], Any]:
    """What StepTransactions.commit does before its COMMIT."""
    return lambda side: side.own._fetch(statement, parameters(side))


def held_in_reverse(side: Side) -> list[tuple[str, int]]:
    return side.world.held[::-1]


def retried(side: Side) -> list[Any]:
    attempt = Attempt("failed", "oh", started=ago(1.0))
    held = held_in_reverse(side)
    return [go_on(run, token, step=LANE.step, payload=None, delay=9.0, attempt=attempt) for run, token in held]


def released(side: Side) -> list[Any]:
    held = held_in_reverse(side)
    return [go_on(*key, step=LANE.step, payload=None, attempt=Attempt("released")) for key in held]


def keyed(keys: list[str]) -> list[client_queries.KeyedRun]:
    return [client_queries.KeyedRun(new_id(), b"null", key, "key") for key in keys]


def run_of(side: Side, kind: str, n: int = 1) -> UUID:
    return UUID(side.world.runs[kind][n])


async def fire(side: Side) -> None:
    for due in await schedule_queries.upcoming(side.work, [LANE.job], 1.0):
        slots = [(new_id(), due.next_at)]
        following = datetime(2100, 1, 1, tzinfo=UTC)
        placement = Placement(unique_key="new 1", concurrency_key="key")
        await schedule_queries.fire(side.work, due, slots, following, LANE.step, placement)


async def register(side: Side) -> None:
    await side.store.register(pid=1, app="", lanes=[LANE])
    await side.store.register_queue(LANE.queue, "dead")


SUPERVISORS = [
    Statement("claim", by_supervisor(lambda side: side.store.claim(LANES, 100, candidates=100, suspects=2))),
    Statement("renew", by_supervisor(lambda s: s.store.renew([Renewal(*key, 60.0, "{}") for key in s.world.held]))),
    Statement("commit", by_supervisor(lambda s: s.store.finish([finish(*key) for key in s.world.held], []))),
    Statement("next step", by_supervisor(lambda s: s.store.continue_([go_on(*key) for key in s.world.held], []))),
    Statement(
        "next step, claimed by the same commit",
        by_supervisor(lambda s: s.store.continue_([go_on(*key) for key in s.world.held], [], [POLICY] * 3)),
    ),
    Statement("retry a step", by_supervisor(lambda side: side.store.continue_(retried(side), []))),
    Statement("release", by_supervisor(lambda side: side.store.continue_(released(side), []))),
    Statement("release unknown claims", by_supervisor(lambda side: side.store.release_unknown([]))),
    Statement("rehearse a renewal", by_supervisor(lambda side: side.store.rehearse_renewal())),
    Statement("reap", by_supervisor(lambda side: side.store.reap(100))),
    Statement("promote", by_supervisor(lambda side: side.store.promote(100))),
    Statement("join key queues", by_supervisor(lambda side: side.store.join_key_queue(100))),
    Statement("sweep keys", by_supervisor(lambda side: side.store.sweep_keys(("", ""), 100))),
    Statement("retention", by_supervisor(lambda side: side.store.expire(100))),
    Statement("fire schedules", by_supervisor(fire)),
    Statement("register", by_supervisor(register)),
    Statement("go idle", by_supervisor(lambda side: side.store.set_idle(True, ["default"]))),
    Statement("forget supervisors", by_supervisor(lambda side: side.store.forget_supervisors())),
    Statement("leave", by_supervisor(lambda side: side.store.deregister())),
]
STEPS = [
    Statement(
        "lock in a step's transaction",
        in_step("lock_run", lambda s: dict(zip(("id", "token"), s.world.held[1], strict=True)) | {"owner": US}),
        held=True,
    ),
    Statement(
        "commit in a step's transaction",
        in_step("finish_runs", lambda s: finish_parameters([finish(*s.world.held[1])], [], US, "testhost")),
        held=True,
    ),
    Statement(
        "next step in a step's transaction",
        in_step("continue_runs", lambda s: continue_parameters([go_on(*s.world.held[1])], [], US, "testhost")),
        held=True,
    ),
]
CLIENTS = [
    Statement(
        "enqueue",
        lambda s: client_queries.insert_run(s.client, new_id(), "job", "step", Placement(), b"null"),
        held=True,
    ),
    Statement(
        "enqueue many",
        lambda s: client_queries.copy_runs(s.client, [(new_id(), b"null")], "job", "step", Placement(), True),
        held=True,
    ),
    Statement(
        "enqueue with unique keys",
        lambda s: client_queries.insert_keyed_runs(s.client, keyed(KEYS), "job", "step", KEYED),
        held=True,
    ),
    Statement(
        "enqueue with unique keys, in reverse order",
        lambda s: client_queries.insert_keyed_runs(s.client, keyed(KEYS[::-1]), "job", "step", KEYED),
        held=True,
    ),
    Statement("cancel", lambda s: client_queries.cancel(s.client, run_of(s, "running")), held=True),
    Statement("cancel a job", lambda s: client_queries.cancel_job(s.client, "job"), held=True),
    Statement(
        "cancel by unique key", lambda s: client_queries.cancel_key(s.client, "job", unique_key="running 1"), held=True
    ),
    Statement(
        "cancel by concurrency key",
        lambda s: client_queries.cancel_key(s.client, "job", concurrency_key="key"),
        held=True,
    ),
    Statement("pause", lambda s: admin_queries.pause(s.client, "default"), held=True),
    Statement("resume", lambda s: admin_queries.resume(s.client, "default"), held=True),
    Statement("retry", lambda s: admin_queries.redrive(s.client, run_of(s, "failed")), held=True),
    Statement("redrive a label", lambda s: admin_queries.redrive_label(s.client, "dead"), held=True),
    Statement("discard", lambda s: admin_queries.discard(s.client, run_of(s, "failed")), held=True),
    Statement("discard a label", lambda s: admin_queries.discard_label(s.client, "dead"), held=True),
    Statement("release from quarantine", lambda s: admin_queries.release_quarantined(s.client, "job"), held=True),
    Statement("schedule", lambda s: put_schedule(s.client), held=True),
    Statement("unschedule", lambda s: schedule_queries.drop(s.client, "job", "schedule 1"), held=True),
    Statement("shut down", lambda s: admin_queries.shut_down(s.client), held=True),
]
EVERYTHING = [*SUPERVISORS, *STEPS, *CLIENTS]
# The supervisor statements that do wait for a lock of another session, and where: at the supervisor's own row, which no
# other session locks; at the attempts of runs whose retention has passed; and for ten milliseconds at a new unique key.
# None of them waits for longer than a second.
WAITS = {
    "register": {"supervisor"},
    "go idle": {"supervisor"},
    "leave": {"supervisor"},
    "retention": {"attempt of failed", "attempt of quarantined", "attempt of succeeded"},
    "fire schedules": {"key new"},
}


def put_schedule(connection: Connection) -> None:
    schedule_queries.put(
        connection,
        lambda now: schedule_queries.ScheduleRow(
            "job", "schedule 1", "@hourly", "UTC", "last", True, "null", now + timedelta(hours=1)
        ),
    )


def named(*names: str) -> list[Statement]:
    return [statement for statement in EVERYTHING if statement.name in names]


@pytest.fixture
def interleaving(database: str, connection: Connection) -> Iterator[Interleaving]:
    with Interleaving(database, connection) as interleaving:
        yield interleaving


def find_faults(
    interleaving: Interleaving, firsts: list[Statement], seconds: list[Statement], points: Iterable[str]
) -> list[str]:
    """Plays each first statement, stopped at each point or held open at its end, against each second."""
    faults = []
    for first in firsts:
        stops: list[str | None] = [point for point in points if interleaving.stops(first, point)]
        for point in [*stops, None] if first.held else stops:
            for second in seconds:
                errors, waited = interleaving.meet(first, second, point)
                where = f"{first.name} at {point or 'its end'}, {second.name}"
                faults += [f"{where}: {error!r}" for error in errors]
                if waited and second in SUPERVISORS and second.name not in WAITS:
                    faults.append(f"{where}: waited")
    return faults


def test_an_interleaving_finds_a_deadlock(interleaving: Interleaving) -> None:
    def lock(side: Side, order: int) -> None:
        for run in side.world.runs["pending"][::order]:
            side.client.execute("select from underway.run where id = %s for update", [run])

    up = Statement("up", lambda side: lock(side, 1), held=True)
    down = Statement("down", lambda side: lock(side, -1), held=True)
    errors, _ = interleaving.meet(up, down, "pending 1")
    assert [type(error) for error in errors] == [psycopg.errors.DeadlockDetected]
    assert interleaving.meet(up, up, "pending 1") == ([], True)
    assert interleaving.meet(up, named("cancel a job")[0]) == ([], True)
    assert interleaving.meet(up, named("claim")[0]) == ([], False)


def test_the_most_important_statements_do_not_deadlock(interleaving: Interleaving) -> None:
    locking = named("cancel a job", "redrive a label", "pause", "enqueue with unique keys")
    others = named("claim", "renew", "commit", "next step", "reap", "retention")
    points = ["running 1", "failed 1", "key failed 1", "queue 0"]
    assert find_faults(interleaving, locking, [*locking, *others], points) == []


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_no_two_statements_deadlock(interleaving: Interleaving, say: Callable[[str], None]) -> None:
    faults: list[str] = []
    for first in [*CLIENTS, *STEPS, *named(*WAITS)]:
        faults += find_faults(interleaving, [first], EVERYTHING, interleaving.points)
        say(f"deadlocks: {interleaving.met:,} interleavings so far, up to {first.name}")
    assert faults == []


@pytest.mark.chaos
def test_no_statement_of_a_supervisor_waits_for_another_sessions_lock(interleaving: Interleaving) -> None:
    waits: dict[str, set[str]] = {}
    for statement in SUPERVISORS:
        for point in interleaving.points:
            if interleaving.stops(statement, point):
                waits.setdefault(statement.name, set()).add(point.rstrip("012 "))
    assert waits == WAITS


def test_a_statement_that_waits_for_a_lock_is_ended_by_its_lock_timeout(database: str, connection: Connection) -> None:
    """Commits share its connection. Registering an unchanged job does not wait."""
    run = insert(connection)
    connection.execute("select underway.cancel(%s)", [run])
    connection.execute("update underway.finished_run set expires_at = now()")
    connection.execute(
        "insert into underway.attempt (run_id, token, attempt_number, finished_at, step, outcome)"
        " values (%s, 1, 1, now(), 'step', 'failed')",
        [run],
    )

    async def meet() -> None:
        async with open_store(database) as store, open_store(database) as other:
            await store.register_job("job", "step", Placement())
            with psycopg.connect(database) as other_session:
                other_session.execute("select from underway.job for update")
                other_session.execute("select from underway.attempt for update")
                await store.register_job("job", "step", Placement())
                waits = (store.expire(100), other.register_job("job", "step", Placement(queue="other")))
                for ended in await asyncio.gather(*waits, return_exceptions=True):
                    assert isinstance(ended, DatabaseUnavailable)
                    assert "lock timeout" in str(ended)
            assert await store.expire(100) == 1
            await other.register_job("job", "step", Placement(queue="other"))
            assert value(connection, "select queue from underway.job") == "other"

    asyncio.run(meet())


def test_concurrent_syncs_of_jobs_in_different_orders_do_not_deadlock(database: str) -> None:
    names = ["a", "b", "c"]
    apps = [Underway(database), Underway(database)]
    for app, order in zip(apps, (1, -1), strict=True):
        for name in names[::order]:
            app.job(name).step(nothing)
    with ExitStack() as stack, psycopg.connect(database) as other_session, ThreadPoolExecutor(2) as threads:
        for app in apps:
            stack.callback(app.close)
        apps[0].sync()
        other_session.execute("update underway.job set priority = 7")  # so that each sync has something to write
        other_session.commit()
        other_session.execute("select from underway.job where name = 'b' for update")
        waiting = "select count(*) from pg_locks where not granted"
        syncing = []
        for number, app in enumerate(apps, 1):
            syncing.append(threads.submit(app.sync))
            eventually(lambda: value(other_session, waiting) >= number)  # noqa: B023
        other_session.rollback()
        assert [sorted(synced.result(20)) for synced in syncing] == [names, names]


def nothing(cx: Context) -> Done:
    return To.done()
