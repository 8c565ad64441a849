"""Schedules: created and changed in any transaction, and fired once for each slot. (Promise 9.)"""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from apps import scheduled
from apps.scheduled import Site
from db import value
from firing import HERE, MINUTE, Firing, runs_of, wait_for
from harness import Supervisor, eventually, states
from psycopg.rows import dict_row

from underway import InvalidOption, JobDefinitionError, PayloadError, Run, Schedule, Status, Underway
from underway.definition.manifest import Placement
from underway.ids import new_id
from underway.postgres import schedule_queries
from underway.postgres.reconnecting import ReconnectingConnection

Bind = Callable[[Underway], Underway]
Start = Callable[..., Supervisor]
Connection = psycopg.Connection[Any]

NEVER_SOON = "0 0 1 1 *"
# As untyped programs may call it.
REPORTS: Any = scheduled.reports
ENDLESS: Any = Underway().job("endless").step(scheduled.begin)


@pytest.fixture
def app(bind: Bind) -> Underway:
    return bind(scheduled.app)


# Clients


def test_a_schedule_waits_for_its_first_slot(app: Underway, connection: Connection) -> None:
    before = value(connection, "select clock_timestamp()")
    made = scheduled.reports.schedule(
        "30 8 * * mon[Asia/Tokyo]", Site(7), name="mondays", catch_up="none", overlap=False
    )
    assert made == Schedule(
        "reports", "mondays", "30 8 * * mon", "Asia/Tokyo", "none", False, {"number": 7}, made.next_at
    )
    assert timedelta(0) < made.next_at - before <= timedelta(days=7)
    first, second = made.next_slots(2)
    assert first == made.next_at
    assert second - first == timedelta(days=7)
    assert first.strftime("%a %H:%M %Z") == "Mon 08:30 JST"
    assert made.next_slots(0) == []
    assert app.schedules() == [made]


def test_a_job_has_several_schedules_by_name(app: Underway) -> None:
    scheduled.later.schedule("@hourly")
    scheduled.later.schedule("@daily", name="another")
    scheduled.reports.schedule("@daily", Site(1))
    assert [(one.job, one.name) for one in app.schedules()] == [
        ("later", "another"),
        ("later", "default"),
        ("reports", "default"),
    ]
    assert scheduled.later.unschedule()
    assert not scheduled.later.unschedule()
    assert not scheduled.reports.unschedule("another")
    assert [(one.job, one.name) for one in app.schedules()] == [("later", "another"), ("reports", "default")]


def test_scheduling_again_updates_the_schedule(app: Underway, connection: Connection) -> None:
    scheduled.reports.schedule("@daily", Site(1), catch_up="all")
    due = wait_for(connection, "default", "now() - interval '3 hours'")
    again = scheduled.reports.schedule("@daily", Site(2), overlap=False)
    assert app.schedules() == [again]
    assert (again.catch_up, again.overlap, again.input) == ("last", False, {"number": 2})
    assert again.next_at == due, "a slot that is due must not be lost by a deployment"
    for other in ("@daily[Asia/Tokyo]", "1 0 * * *[Asia/Tokyo]"):
        changed = scheduled.reports.schedule(other, Site(2))
        assert changed.next_at > value(connection, "select now()")
        assert app.schedules() == [changed]
        wait_for(connection, "default", "now() - interval '3 hours'")


def test_schedules_are_part_of_the_callers_transaction(app: Underway, database: str) -> None:
    with psycopg.connect(database, row_factory=dict_row) as conn:
        conn.execute("set datestyle to 'German'")
        made = scheduled.reports.schedule("@daily", Site(1), conn=conn)
        assert app.schedules() == []
        conn.rollback()
        assert app.schedules() == []
        scheduled.reports.schedule("@daily", Site(1), conn=conn)
        conn.commit()
        assert app.schedules() == [made]
        assert scheduled.reports.unschedule(conn=conn)
        assert app.schedules() == [made]
        conn.rollback()
        assert app.schedules() == [made]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: REPORTS.schedule("@reboot", Site(1)), InvalidOption, "@daily"),
        (lambda: REPORTS.schedule("0 0 30 2 *", Site(1)), InvalidOption, "never"),
        (lambda: REPORTS.schedule("* * * * * *", Site(1)), InvalidOption, "five fields"),
        (lambda: REPORTS.schedule("@daily[Mars]", Site(1)), InvalidOption, "unknown time zone 'Mars'"),
        (lambda: REPORTS.schedule("@daily", 5), PayloadError, "Site"),
        (lambda: REPORTS.schedule("@daily"), PayloadError, "Site"),
        (lambda: REPORTS.schedule("@daily", Site(1), name=""), InvalidOption, "name must be a string"),
        (lambda: REPORTS.schedule("@daily", Site(1), catch_up="some"), InvalidOption, "none, last, all"),
        (lambda: REPORTS.schedule("@daily", Site(1), overlap="no"), InvalidOption, "True or False"),
        (
            lambda: REPORTS.schedule("@daily", Site(1), catch_up="all", overlap=False),
            InvalidOption,
            "concurrency_key",
        ),
        (lambda: REPORTS.schedule("@daily", Site(1), conn="me"), InvalidOption, "psycopg.Connection"),
        (lambda: REPORTS.unschedule(conn="me"), InvalidOption, "psycopg.Connection"),
        (lambda: ENDLESS.schedule("@daily", Site(1)), JobDefinitionError, "no end"),
    ],
)
def test_an_invalid_schedule_is_refused_at_the_call(
    app: Underway, call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()
    assert app.schedules() == []


@pytest.mark.parametrize("call", ["job.schedule('@daily')", "job.unschedule()"])
def test_importing_an_app_schedules_nothing(call: str, database: str, tmp_path: Path) -> None:
    (tmp_path / "eager.py").write_text(
        "from underway import Context, Done, Underway\n"
        "def step(cx: Context) -> Done: ...\n"
        f"app = Underway({database!r})\n"
        f"job = app.job('job').step(step)\n{call}\n"
    )
    program = "from underway.definition.app_import import load; load('eager.py:app')"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert "ImportSideEffect" in done.stderr
    assert "if __name__ == '__main__'" in done.stderr


def test_a_step_can_schedule_only_through_cx_tx(app: Underway, start_supervisor: Start) -> None:
    run = scheduled.refusing.enqueue()
    start_supervisor("scheduled", "--procs", "1")
    assert "InsideStep" in run.result(20)
    assert "conn=cx.tx" in run.result()
    assert app.schedules() == []


# Firing, one statement at a time


@pytest.fixture
def firing(app: Underway, database: str, connection: Connection) -> Firing:
    scheduled.later.schedule("* * * * *")
    wait_for(connection, "default", "date_trunc('minute', now()) - interval '1 hour'")
    return Firing(database, connection)


def test_a_slot_that_was_read_twice_is_fired_once(firing: Firing) -> None:
    schedule = firing.read()
    assert firing.fire(schedule) == 1
    assert firing.fire(schedule) is None
    assert [run["scheduled_at"] for run in runs_of(firing.connection)] == [schedule.next_at]
    assert firing.read().next_at == schedule.next_at + MINUTE


def test_only_one_of_many_simultaneous_supervisors_fires(firing: Firing, database: str) -> None:
    async def race(schedule: schedule_queries.Upcoming) -> list[int | None]:
        sessions = [ReconnectingConnection(database) for _ in range(8)]
        following = schedule.next_at + MINUTE
        try:
            for session in sessions:
                await session.open()
            return await asyncio.gather(
                *(
                    schedule_queries.fire(session, schedule, [(new_id(), schedule.next_at)], following, "step", HERE)
                    for session in sessions
                )
            )
        finally:
            for session in sessions:
                await session.close()

    for turn in range(1, 6):
        fired = asyncio.run(race(firing.read()))
        assert sorted(map(str, fired)) == ["1"] + ["None"] * 7
        assert len(runs_of(firing.connection)) == turn


CHANGES = [
    "cron = '*/2 * * * *'",
    "zone = 'Asia/Tokyo'",
    "catch_up = 'all'",
    "next_at = next_at + interval '1 minute'",
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_schedule_that_has_changed_since_it_was_read_is_not_fired(firing: Firing, change: str) -> None:
    schedule = firing.read()
    firing.connection.execute(f"update underway.schedule set {change}")
    assert firing.fire(schedule) is None
    assert runs_of(firing.connection) == []
    assert firing.fire(firing.read()) == 1


def test_a_removed_schedule_is_not_fired(firing: Firing) -> None:
    schedule = firing.read()
    scheduled.later.unschedule()
    assert firing.fire(schedule) is None
    assert runs_of(firing.connection) == []


def test_a_locked_schedule_blocks_no_supervisor(firing: Firing, database: str) -> None:
    schedule = firing.read()
    with psycopg.connect(database) as stranger:
        stranger.execute("select from underway.schedule for update")
        assert firing.fire(schedule) is None  # at once, or its session would time out
        stranger.execute("update underway.schedule set input = '1'")
    assert firing.fire(schedule) == 1
    (run,) = runs_of(firing.connection)
    assert run["input"] == 1, "the input is that of the schedule when it fires"


def test_runs_are_placed_by_the_code_of_the_firing_supervisor(firing: Firing) -> None:
    place = Placement(queue="q", priority=4, delay=timedelta(hours=1), keep=timedelta(days=2, seconds=0.5))
    assert firing.fire(firing.read(), place, slots=2) == 2
    for run in runs_of(firing.connection):
        assert (run["queue"], run["priority"], run["keep"], run["state"]) == ("q", 4, place.keep, "waiting")
        assert run["due_at"] - run["rank"] == 4 * MINUTE
        assert timedelta(minutes=59) < run["due_at"] - run["created_at"] < timedelta(minutes=61)
    assert firing.fire(firing.read(), Placement()) == 1
    assert [run["state"] for run in runs_of(firing.connection)] == ["waiting", "waiting", "pending"]


def test_without_overlap_a_slot_is_skipped_while_a_run_is_live(firing: Firing, app: Underway) -> None:
    connection = firing.connection
    # Live runs of the same job that do not count: one of another schedule, and one of none.
    scheduled.later.enqueue()
    connection.execute("update underway.run set schedule = 'other'")
    scheduled.later.enqueue()
    scheduled.later.schedule("* * * * *", overlap=False)
    first = firing.read()
    assert firing.fire(first) == 1
    second = firing.read()
    assert firing.fire(second) == 0
    assert [run["scheduled_at"] for run in runs_of(connection)] == [first.next_at]
    assert firing.read().next_at == second.next_at + MINUTE, "the slot is skipped, not postponed"
    (live,) = runs_of(connection)
    assert app.get_run(live["id"]).cancel()
    third = firing.read()
    assert firing.fire(third) == 1
    assert [run["scheduled_at"] for run in runs_of(connection)] == [third.next_at]


def test_with_overlap_a_slot_is_fired_while_a_run_is_live(firing: Firing) -> None:
    assert [firing.fire(firing.read()) for _ in range(3)] == [1] * 3
    assert len(runs_of(firing.connection)) == 3


def test_only_due_schedules_of_the_given_jobs_are_read(firing: Firing, connection: Connection) -> None:
    assert firing.read().next_at < firing.read().now
    wait_for(connection, "default", "now() + interval '1 minute'")
    with pytest.raises(ValueError, match="not enough values"):
        firing.read()
    wait_for(connection, "default", "now()")
    with pytest.raises(ValueError, match="not enough values"):
        firing.read("reports")


# Supervisors


def test_every_step_and_attempt_knows_its_slot(app: Underway, connection: Connection, start_supervisor: Start) -> None:
    scheduled.reports.schedule("@daily[Asia/Tokyo]", Site(7))
    slot = wait_for(connection, "default", "now() - interval '5 days'")
    start_supervisor("scheduled", "--procs", "1")
    run_id = eventually(lambda: connection.execute("select id from underway.runs").fetchone())
    assert run_id is not None  # for mypy
    (schedule,) = app.schedules()
    latest = schedule.next_at - timedelta(days=1)
    assert latest.astimezone(ZoneInfo("Asia/Tokyo")).hour == 0
    run: Run[Any] = app.get_run(run_id[0])
    assert run.result(20) == [latest, latest, latest]
    assert [attempt.outcome for attempt in run.attempts()] == ["succeeded", "succeeded", "failed", "succeeded"]
    assert slot < latest <= value(connection, "select now()") < schedule.next_at
    assert scheduled.reports.enqueue(Site(1)).result(20) == [None, None, None]


def test_a_running_supervisor_sees_changes(app: Underway, connection: Connection, start_supervisor: Start) -> None:
    supervisor = start_supervisor("scheduled", "--procs", "1")
    assert scheduled.numbers.enqueue(Site(0)).result(20) == 0

    def results() -> list[Any]:
        rows = connection.execute("select result from underway.finished_run order by finished_at").fetchall()
        return [result for (result,) in rows]

    scheduled.numbers.schedule(NEVER_SOON, Site(1))
    wait_for(connection, "default", "now() + interval '300 ms'")
    eventually(lambda: results() == [0, 1])
    scheduled.numbers.schedule(NEVER_SOON, Site(2))
    assert results() == [0, 1]
    wait_for(connection, "default", "now()")
    eventually(lambda: results() == [0, 1, 2])
    wait_for(connection, "default", "now() + interval '500 ms'")
    scheduled.numbers.unschedule()
    scheduled.numbers.schedule(NEVER_SOON, Site(3), name="another")
    wait_for(connection, "another", "now() + interval '1 s'")
    eventually(lambda: results() == [0, 1, 2, 3])
    assert supervisor.process.poll() is None


def test_a_slot_is_not_fired_early(app: Underway, connection: Connection, start_supervisor: Start) -> None:
    supervisor = start_supervisor("scheduled", "--procs", "1")
    supervisor.until("serving")
    for name in ("one", "two", "three"):
        scheduled.later.schedule(NEVER_SOON, name=name)
        slot = wait_for(connection, name, "now() + interval '1300 ms'")
        (run,) = eventually(lambda name=name: runs_of(connection, name))  # type: ignore[misc]
        assert run["scheduled_at"] == slot
        assert run["created_at"] >= slot


def test_an_invalid_schedule_blocks_no_other(app: Underway, connection: Connection, start_supervisor: Start) -> None:
    for name in ("zone", "line", "locked", "good"):
        scheduled.numbers.schedule(NEVER_SOON, Site(1), name=name)
        wait_for(connection, name, "now() - interval '1 s'")
    connection.execute("update underway.schedule set zone = 'Mars/Olympus' where name = 'zone'")
    connection.execute("update underway.schedule set cron = 'now and then' where name = 'line'")
    connection.execute(
        "insert into underway.schedule (job, name, cron, zone, input, next_at) "
        "select 'unknown', name, cron, zone, input, next_at from underway.schedule where name = 'good'"
    )
    with psycopg.connect(connection.info.dsn) as stranger:
        stranger.execute("select from underway.schedule where name = 'locked' for update")
        supervisor = start_supervisor("scheduled", "--procs", "1")
        eventually(lambda: states(connection) == {"succeeded": 1})
        supervisor.until("unknown time zone 'Mars/Olympus'")
        supervisor.until("invalid cron line 'now and then'")
    eventually(lambda: states(connection) == {"succeeded": 2})
    still_due = connection.execute("select job, name from underway.schedule where next_at < now()").fetchall()
    assert sorted(still_due) == [("numbers", "line"), ("numbers", "zone"), ("unknown", "good")]
    assert supervisor.log.count("Mars/Olympus") == 1, "logged once, not at every poll"


def test_a_skipped_slot_is_logged(app: Underway, connection: Connection, start_supervisor: Start) -> None:
    scheduled.sleeping.schedule(NEVER_SOON, 60.0, overlap=False)
    wait_for(connection, "default", "now()")
    supervisor = start_supervisor("scheduled", "--procs", "1")
    (run,) = eventually(lambda: runs_of(connection))
    eventually(lambda: app.get_run(run["id"]).status() is Status.IN_PROGRESS)
    wait_for(connection, "default", "now()")
    supervisor.until("slot skipped")
    assert len(runs_of(connection)) == 1


def test_every_slot_gives_one_run_however_often_supervisors_die(
    app: Underway, connection: Connection, start_supervisor: Start
) -> None:
    names = [f"schedule {n}" for n in range(4)]
    for name in names:
        scheduled.later.schedule("* * * * *[Europe/Berlin]", name=name, catch_up="all")
    connection.execute("update underway.schedule set next_at = date_trunc('minute', now()) - interval '1000 minutes'")
    (begin,) = {schedule.next_at for schedule in app.schedules()}

    def enqueued() -> int:
        return int(value(connection, "select count(*) from underway.run"))

    for more in (1, 400, 1600):
        supervisors = [start_supervisor("scheduled", "--procs", "1") for _ in range(2)]
        eventually(lambda more=more: enqueued() >= more)  # type: ignore[misc]
        for supervisor in supervisors:
            supervisor.process.kill()
    start_supervisor("scheduled", "--procs", "1")
    now = "select min(next_at) > now() from underway.schedule"
    eventually(lambda: value(connection, now), within=40)
    with connection.transaction():
        # In one query, because a minute may end between two.
        connection.execute("set transaction isolation level repeatable read")
        next_at = dict(connection.execute("select name, next_at from underway.schedule").fetchall())
        slots = {name: [run["scheduled_at"] for run in runs_of(connection, name)] for name in names}
    for name in names:
        count = (next_at[name] - begin) // MINUTE
        assert slots[name] == [begin + n * MINUTE for n in range(count)]
        assert count >= 1000


def test_the_hosts_clock_is_not_used() -> None:
    import underway

    package = Path(underway.__file__).parent
    for file in (
        "schedule/cron.py",
        "client/schedules.py",
        "postgres/schedule_queries.py",
        "supervisor/loops/schedule.py",
    ):
        source = (package / file).read_text()
        assert not [clock for clock in (".now(", ".utcnow(", ".today(", "time.time") if clock in source], file
