"""The runs of a schedule have keys like any run, and a finished run keeps its schedule for a redrive."""

from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from apps import scheduled
from apps.scheduled import Site
from db import AGES_AGO, Connection, finish, insert_held, row_of, value, with_store
from firing import MINUTE, Firing, runs_of, wait_for
from harness import Supervisor, eventually

from underway import Job, PayloadError, Underway
from underway.definition.manifest import Placement
from underway.postgres import admin_queries
from underway.postgres.supervisor_store import Store

Jobs = Any
Start = Callable[..., Supervisor]

NEVER_SOON = "0 0 1 1 *"
BOTH = {"site": {"number": 7, "name": "Ost"}}
US = uuid4()


@pytest.fixture
def app(bind: Callable[[Underway], Underway]) -> Underway:
    return bind(scheduled.app)


@pytest.fixture
def firing(app: Underway, database: str, connection: Connection) -> Firing:
    return Firing(database, connection)


def placement(job: Job[Any, Any, Any]) -> Placement:
    return job.compiled[0].spec.placement


def schedule_due(firing: Firing, job: Jobs, given: Any, **options: Any) -> None:
    """A schedule that has been due for an hour."""
    job.schedule("* * * * *", given, **options)
    name = options.get("name", "default")
    wait_for(firing.connection, name, "date_trunc('minute', now()) - interval '1 hour'")


def fire(firing: Firing, job: Jobs, slots: int = 1) -> int | None:
    return firing.fire(firing.read(job.name), placement(job), slots)


def slots_of(connection: Connection) -> list[datetime]:
    return [run["scheduled_at"] for run in runs_of(connection)]


# Keys


JOBS: list[tuple[Jobs, Any]] = [
    (scheduled.numbers, Site(7)),
    (scheduled.unique, Site(7)),
    (scheduled.in_line, Site(7)),
    (scheduled.both, BOTH),
]


@pytest.mark.parametrize(("job", "given"), JOBS, ids=lambda job: getattr(job, "name", ""))
def test_a_slot_enqueues_the_same_run_as_enqueue(
    any_database: str, bind: Callable[[Underway], Underway], job: Jobs, given: Any
) -> None:
    bind(scheduled.app).database.named = any_database
    columns = """job, queue, state, priority, keep, unique_key, concurrency_key, concurrency_limit, holds_key,
        input::text, rank is null, due_at - rank,
        round(extract(epoch from due_at - created_at) / 60)"""
    with psycopg.connect(any_database, autocommit=True) as connection:
        firing = Firing(any_database, connection)
        schedule_due(firing, job, given)
        assert fire(firing, job) == 1
        query = f"select {columns} from underway.run"
        fired = connection.execute(query).fetchall()
        connection.execute("truncate underway.run")
        job.enqueue(given)
        assert fired == connection.execute(query).fetchall()
        scheduled.app.close()


@pytest.mark.parametrize("given", [{}, {"site": {"number": 7}}, {"site": {"number": 7, "name": []}}])
def test_an_input_that_cannot_fill_a_key_is_refused(app: Underway, given: dict[str, Any]) -> None:
    with pytest.raises(PayloadError, match=r"the key '\{site\.") as error:
        scheduled.both.schedule("@daily", given)
    with pytest.raises(PayloadError) as as_enqueued:
        scheduled.both.enqueue(given)
    assert str(error.value) == str(as_enqueued.value)
    assert app.schedules() == []


def test_a_slot_is_skipped_while_a_run_with_its_unique_key_is_live(firing: Firing) -> None:
    connection = firing.connection
    live = scheduled.unique.enqueue(Site(7))
    schedule_due(firing, scheduled.unique, Site(7))
    first = firing.read("unique").next_at
    assert fire(firing, scheduled.unique) == 0
    assert slots_of(connection) == []
    assert firing.read("unique").next_at == first + MINUTE
    assert live.cancel()
    assert fire(firing, scheduled.unique) == 1
    assert fire(firing, scheduled.unique) == 0, "the schedule's own run is live now"
    assert slots_of(connection) == [first + MINUTE]


def test_missed_slots_give_one_run_with_a_unique_key_and_all_with_a_concurrency_key(firing: Firing) -> None:
    connection = firing.connection
    schedule_due(firing, scheduled.unique, Site(7), catch_up="all")
    first = firing.read("unique").next_at
    assert fire(firing, scheduled.unique, slots=5) == 1
    assert slots_of(connection) == [first], "the oldest"
    connection.execute("truncate underway.run")
    schedule_due(firing, scheduled.in_line, Site(7), catch_up="all")
    assert fire(firing, scheduled.in_line, slots=5) == 5
    assert slots_of(connection) == [first + n * MINUTE for n in range(5)]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_slot_stays_due_while_an_open_transaction_has_its_unique_key(firing: Firing, database: str, end: str) -> None:
    schedule_due(firing, scheduled.unique, Site(7))
    before = firing.read("unique")
    with psycopg.connect(database) as caller:
        scheduled.unique.enqueue(Site(7), conn=caller)
        assert fire(firing, scheduled.unique) is None  # a statement that waits is given up and raises
        assert firing.read("unique").next_at == before.next_at
        getattr(caller, end)()
    assert fire(firing, scheduled.unique) == (1 if end == "rollback" else 0)
    assert value(firing.connection, "select count(*) from underway.run") == 1
    assert firing.read("unique").next_at == before.next_at + MINUTE


def test_a_stored_input_that_cannot_fill_the_key_leaves_the_slot_due(firing: Firing) -> None:
    schedule_due(firing, scheduled.unique, Site(7))
    firing.connection.execute("update underway.schedule set input = '{}'")
    before = firing.read("unique")
    with pytest.raises(psycopg.DataError, match="needs the field number"):
        fire(firing, scheduled.unique)
    assert firing.read("unique").next_at == before.next_at
    assert slots_of(firing.connection) == []


def test_supervisors_fire_schedules_with_keys(
    app: Underway, connection: Connection, database: str, start_supervisor: Start
) -> None:
    for job, name in ((scheduled.in_line, "line"), (scheduled.unique, "undecided"), (scheduled.unique, "unfit")):
        job.schedule(NEVER_SOON, Site(7), name=name)
    connection.execute("update underway.schedule set input = '{}' where name = 'unfit'")
    with psycopg.connect(database) as caller:
        scheduled.unique.enqueue(Site(7), conn=caller)
        wait_for(connection, "unfit", "now() - interval '3 s'")
        wait_for(connection, "undecided", "now() - interval '2 s'")
        supervisor = start_supervisor("scheduled", "--procs", "1")
        supervisor.until("the key 'site {number}' needs the field number")
        wait_for(connection, "line", "now()")
        finished = "select array_agg(schedule) from underway.finished_run"
        eventually(lambda: value(connection, finished) == ["line"])
        caller.rollback()
    eventually(lambda: value(connection, finished) == ["line", "undecided"])
    assert supervisor.log.count("needs the field number") == 1, "logged once, not at every turn"
    assert "interrupted" not in supervisor.log, "the connection is not to blame"


# Finished and redriven


def test_a_redriven_run_is_a_live_run_of_its_schedule(firing: Firing, database: str) -> None:
    connection = firing.connection
    schedule_due(firing, scheduled.numbers, Site(7), overlap=False)
    of_schedule = {"job": "numbers", "schedule": "default", "scheduled_at": AGES_AGO}
    failed, token = insert_held(connection, US, **of_schedule)
    expired, _ = insert_held(connection, US, lease_expires_at=AGES_AGO, crashes=2, **of_schedule)
    plain, plain_token = insert_held(connection, US, job="numbers")

    async def end(store: Store) -> None:
        for run, of_run in ((failed, token), (plain, plain_token)):
            assert await store.finish([finish(run, of_run, state="failed", payload=None)], [])
        assert await store.reap(10)

    with_store(database, end, US)
    assert admin_queries.redrive(connection, UUID(plain))
    assert fire(firing, scheduled.numbers) == 1, "no schedule had enqueued the live run"
    connection.execute("truncate underway.run")
    for run in (failed, expired):
        slot = value(connection, "select scheduled_at from underway.finished_run where id = %s", [run])
        assert admin_queries.redrive(connection, UUID(run))
        assert [(live["id"], live["scheduled_at"]) for live in runs_of(connection)] == [(UUID(run), slot)]
        assert fire(firing, scheduled.numbers) == 0
        assert row_of(connection, "run", run) is not None
        connection.execute("truncate underway.run")
    assert fire(firing, scheduled.numbers) == 1
