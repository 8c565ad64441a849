"""The statements of `inspection.sql`: also on the oldest Postgres, and beside many rows."""

from typing import Any
from uuid import UUID

import psycopg
from db import Connection, insert, insert_held
from psycopg import sql

from underway.ids import new_id
from underway.postgres import client_queries, inspection
from underway.postgres.queries import statements

US = new_id()


def test_every_statement_on_any_postgres(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        # Settings of a role must not change instants.
        connection.execute("set datestyle = 'sql, dmy'")
        connection.execute("set timezone = 'Asia/Kathmandu'")
        waiting = insert(connection, state="waiting", due_at=None, concurrency_key="k", concurrency_limit=2)
        held, _ = insert_held(connection, US, keep="999 years")
        done = insert(connection)
        connection.execute("select underway.cancel(%s)", [done])
        connection.execute("update underway.finished_run set state = 'failed', dead_letter = 'd'")
        connection.execute(
            "insert into underway.supervisor (id, host, pid, app, seen_at) "
            "values (%s, 'here', 1, 'app', now() - interval '31 seconds')",
            [US],
        )
        now = client_queries.clock(connection)
        assert {run["id"] for run in inspection.list_runs(connection, limit=9)} == {waiting, held, done}
        assert [run["id"] for run in inspection.list_runs(connection, state="waiting", limit=9)] == [waiting]
        assert inspection.all_looked_at(connection)
        waiting_run = inspection.run_details(connection, UUID(waiting))
        assert waiting_run is not None
        assert (waiting_run["due_at"], waiting_run["concurrency_limit"]) == (None, 2)
        assert abs((waiting_run["created_at"] - now).total_seconds()) < 60
        held_run = inspection.run_details(connection, UUID(held))
        assert held_run is not None
        assert (held_run["owner"], held_run["host"]) == (str(US), "here")
        (queue,) = inspection.list_queues(connection)
        assert (queue["waiting"], queue["in_progress"], queue["late_since"]) == (1, 1, None)
        (supervisor,) = inspection.list_supervisors(connection)
        assert (supervisor["state"], supervisor["in_progress"]) == ("silent", 1)
        connection.execute("update underway.supervisor set seen_at = now() - interval '5 seconds'")
        assert [supervisor["state"] for supervisor in inspection.list_supervisors(connection)] == ["busy"]
        assert [found.id for found in inspection.supervisors_like(connection, US, US)] == [US]
        (label,) = inspection.dead_letter_labels(connection)
        assert (label["label"], label["runs"]) == ("d", 1)
        connection.execute("update underway.finished_run set quarantined = true")
        (quarantined,) = inspection.list_quarantine(connection, "job", 9)
        assert (quarantined["id"], quarantined["input"]) == (done, {"n": 1})
        assert abs((quarantined["finished_at"] - now).total_seconds()) < 60
        assert inspection.list_quarantine(connection, "other", 9) == []
        assert inspection.list_schedules(connection) == []


def test_a_run_that_expires_after_pythons_last_year(connection: Connection) -> None:
    run = insert(connection)
    connection.execute("select underway.cancel(%s)", [run])
    connection.execute("update underway.finished_run set expires_at = now() + interval '9000 years'")
    shown = inspection.run_details(connection, UUID(run))
    assert shown is not None
    assert shown["expires_at"] is not None
    assert shown["expires_at"].year == 9999


def test_a_list_reads_few_rows_beyond_those_it_shows(connection: Connection) -> None:
    connection.execute(
        "insert into underway.finished_run (id, created_at, expires_at, keep, attempts, crashes, releases, priority, "
        "state, queue, job, step) select gen_random_uuid(), now(), now(), '1 day', 0, 0, 0, 0, 'succeeded', 'default', "
        "'job', 'step' from generate_series(1, 20000)"
    )
    connection.execute(
        "insert into underway.run (id, due_at, rank, keep, state, queue, job, step, input) "
        "select gen_random_uuid(), now(), now(), '1 day', 'pending', 'default', 'job', 'step', '{}' "
        "from generate_series(1, 20000)"
    )
    connection.execute("analyze underway.run, underway.finished_run")
    assert rows_read(connection) < 100
    assert rows_read(connection, job="job", state="succeeded", live=0) < 100
    assert rows_read(connection, state="in_progress", finished=0) < 100
    assert rows_read(connection, job="unknown", live=0, finished=1000) <= 1000
    assert rows_read(connection, "list_quarantine") == 0
    connection.execute("update underway.finished_run set quarantined = true where id in ("
                       "select id from underway.finished_run limit 100)")  # fmt: skip
    assert 20 <= rows_read(connection, "list_quarantine") <= 100


def rows_read(connection: Connection, name: str = "list_runs", **given: Any) -> int:
    """The number of rows of the two run tables that a list reads."""
    none = {"state": None, "job": None, "queue": None, "stranded": False, "unsuccessful": 0}
    parameters = {**none, "limit": 20, "live": 20, "finished": inspection.SEARCH_LIMIT, **given}
    explain = sql.SQL("explain (analyze, timing off, format json) ") + sql.SQL(statements()[name])
    row = connection.execute(explain, parameters).fetchone()
    assert row is not None
    read, plans = 0, [row[0][0]["Plan"]]
    while plans:
        plan = plans.pop()
        plans += plan.get("Plans", [])
        if plan.get("Relation Name") in ("run", "finished_run"):
            read += (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * plan["Actual Loops"]
    return int(read)
