"""Unscheduling a job without a schedule; several runs of one schedule."""

from collections.abc import Callable

from apps import scheduled
from db import Connection, value
from harness import Supervisor, eventually

from underway import Status, Underway


def test_unschedule_returns_whether_the_job_had_a_schedule(
    bind: Callable[[Underway], Underway], connection: Connection
) -> None:
    app = bind(scheduled.app)
    scheduled.later.schedule("@daily")
    assert not scheduled.numbers.unschedule()
    assert [schedule.job for schedule in app.schedules()] == ["later"], "the other job's schedule stays"
    assert scheduled.later.unschedule()
    assert app.schedules() == []
    assert value(connection, "select count(*) from underway.schedule") == 0
    assert not scheduled.later.unschedule()


def test_each_slot_has_its_own_run(
    bind: Callable[[Underway], Underway], connection: Connection, start_supervisor: Callable[..., Supervisor]
) -> None:
    """With one run ID for all slots, cancelling one run would cancel all of them."""
    app = bind(scheduled.app)
    scheduled.later.schedule("* * * * *", catch_up="all")
    connection.execute("update underway.schedule set next_at = date_trunc('minute', now()) - interval '2 minutes'")
    start_supervisor("scheduled", "--procs", "1")
    query = "select id, step, input from underway.run order by scheduled_at"
    eventually(lambda: len(connection.execute(query).fetchall()) >= 3)
    found = connection.execute(query).fetchall()
    assert {row[1:] for row in found} == {("nothing", None)}
    first, second, *_ = (app.get_run(row[0]) for row in found)
    assert first.cancel()
    assert (first.status(), second.status()) == (Status.CANCELLED, Status.WAITING)
