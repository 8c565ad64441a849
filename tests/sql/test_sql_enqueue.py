"""`select underway.enqueue(...)`: what any language and driver calls in its own transaction."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from apps import clients
from apps.clients import STRANGE, Order
from harness import Supervisor
from places import APPS

from underway import Status, Underway
from underway.client.run import Run

Connection = psycopg.Connection[Any]


def sync(database: str, app: str = f"{APPS}/clients.py:app") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "UNDERWAY_DATABASE_URL": database}
    command = [sys.executable, "-m", "underway.cli.main", "sync", app]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture
def app(any_database: str) -> Iterator[Underway]:
    clients.app.database.named = any_database
    yield clients.app
    clients.app.close()
    clients.app.database.named = None


@pytest.fixture
def sql(any_database: str, app: Underway) -> Iterator[Connection]:
    """An autocommit connection to a database that knows the jobs of apps/clients.py."""
    app.sync()
    with psycopg.connect(any_database, autocommit=True) as connection:
        yield connection


def run(connection: Connection, row_id: UUID) -> tuple[Any, ...]:
    found: tuple[Any, ...] | None = connection.execute(
        "select job, step, queue, state, priority, due_at - rank, keep, input from underway.run where id = %s", [row_id]
    ).fetchone()
    assert found is not None
    return found


def enqueued(connection: Connection, call: str, parameters: Any = None) -> UUID:
    """The ID that this call of underway.enqueue returns."""
    found = connection.execute(f"select {call}", parameters).fetchone()
    assert found is not None
    assert isinstance(found[0], UUID)
    return found[0]


DEFAULTS = ("default", "pending", 0, timedelta(0), timedelta(days=14))


def test_sync_registers_the_jobs_of_an_app(any_database: str) -> None:
    done = sync(any_database)
    assert done.returncode == 0, done.stderr
    assert "registered orders\n" in done.stdout
    assert sync(any_database).returncode == 0  # safe to repeat
    with psycopg.connect(any_database) as connection:
        known = {row[0] for row in connection.execute("select name from underway.job")}
        assert known == set(clients.app.jobs)
        new = enqueued(connection, """underway.enqueue('orders', '{"number": 1}')""")
        assert run(connection, new) == ("orders", "keep_order", *DEFAULTS, {"number": 1})


def test_defaults_come_from_the_registered_job(sql: Connection) -> None:
    assert run(sql, enqueued(sql, "underway.enqueue('looking')")) == ("looking", "looks_around", *DEFAULTS, None)
    placed = enqueued(sql, "underway.enqueue('placed', '[1, 2]')")
    keep = timedelta(days=3, seconds=1.5)
    assert run(sql, placed) == ("placed", "echo", "slow", "waiting", -7, timedelta(minutes=-7), keep, [1, 2])


def test_a_second_sync_updates_the_defaults(sql: Connection, app: Underway) -> None:
    changed = sql.execute("update underway.job set queue = 'old', priority = 9 where name = 'orders'")
    assert changed.rowcount == 1
    assert run(sql, enqueued(sql, "underway.enqueue('orders', '1')"))[2] == "old"
    app.sync()
    assert run(sql, enqueued(sql, "underway.enqueue('orders', '1')"))[2] == "default"


def test_arguments_replace_the_defaults(sql: Connection) -> None:
    new = enqueued(
        sql, "underway.enqueue('orders', '{}', delay => interval '1 hour', priority => 5, keep => interval '1 day')"
    )
    minutes = timedelta(minutes=5)
    assert run(sql, new) == ("orders", "keep_order", "default", "waiting", 5, minutes, timedelta(days=1), {})
    ((due,),) = sql.execute("select due_at - clock_timestamp() from underway.run").fetchall()
    assert timedelta(minutes=59) < due <= timedelta(hours=1)
    # zero replaces a default too
    now = enqueued(sql, "underway.enqueue('placed', '1', delay => interval '0', priority => 0)")
    assert run(sql, now)[2:6] == ("slow", "pending", 0, timedelta(0))
    for priority in (-32768, 32767):
        assert run(sql, enqueued(sql, "underway.enqueue('orders', '1', priority => %s)", [priority]))[4] == priority


def test_arguments_by_position_and_by_name(sql: Connection) -> None:
    enqueued(sql, "underway.enqueue('orders', '1', interval '1 s', 2, interval '3 days')")
    enqueued(sql, "underway.enqueue(job => 'orders', input => '1')")
    enqueued(sql, "underway.enqueue(%s, %s, %s, %s, %s)", ["orders", "1", timedelta(1), 2, timedelta(3)])


def test_a_missing_input_is_null(sql: Connection) -> None:
    for call in (
        "underway.enqueue('echoes')",
        "underway.enqueue('echoes', null)",
        "underway.enqueue('echoes', 'null')",
    ):
        new = enqueued(sql, call)
        assert sql.execute("select input::text from underway.run where id = %s", [new]).fetchone() == ("null",)


def test_an_unknown_job_is_refused_with_advice(sql: Connection) -> None:
    with pytest.raises(psycopg.Error) as raised:
        enqueued(sql, "underway.enqueue('it''s none', '{}')")
    assert raised.value.sqlstate == "UW001"
    assert raised.value.diag.message_primary == "underway knows no job 'it''s none'"
    assert raised.value.diag.message_hint is not None
    assert "underway sync APP" in raised.value.diag.message_hint
    with pytest.raises(psycopg.Error) as raised:
        enqueued(sql, "underway.enqueue(null, '{}')")
    assert raised.value.sqlstate == "UW001"
    assert raised.value.diag.message_primary == "underway knows no job <NULL>"


INVALID_DURATIONS = [
    *("-1 microsecond", "-1 day", "365000 days 1 microsecond", "8760001 hours", "1014 years", "293000 years"),
    # one part cancels the other
    *("292000 years -105110000 days", "-292000 years 105130000 days"),
    *("2400000000 hours -99990000 days", "100000000 days -2399000000 hours"),
]


@pytest.mark.parametrize(
    ("argument", "sqlstate"),
    [
        ("priority => 32768", "UW002"),
        ("priority => -32769", "UW002"),
        *((f"{option} => interval '{value}'", "UW002") for option in ("delay", "keep") for value in INVALID_DURATIONS),
        ("input => 'not json'", "22P02"),
    ],
)
def test_invalid_values_are_refused(sql: Connection, argument: str, sqlstate: str) -> None:
    with pytest.raises(psycopg.Error) as raised:
        enqueued(sql, f"underway.enqueue('orders', {argument})")
    assert raised.value.sqlstate == sqlstate
    assert sql.execute("select count(*) from underway.run").fetchone() == (0,)


@pytest.mark.parametrize(
    "large",
    [
        pytest.param("to_jsonb(repeat('x', 8388607))", id="a byte too long"),
        # 1e131071 is stored in a few bytes but printed with 131,072 digits. The second array exceeds the largest text.
        pytest.param("(select jsonb_agg('1e131071'::jsonb) from generate_series(1, 100))", id="13 MB in 2 kB"),
        pytest.param("(select jsonb_agg('1e131071'::jsonb) from generate_series(1, 9000))", id="1.2 GB in 160 kB"),
    ],
)
def test_an_input_that_is_too_large_as_text_is_refused(sql: Connection, large: str) -> None:
    failed = enqueued(sql, "underway.enqueue('echoes')")
    assert sql.execute("select underway.cancel(%s)", [failed]).fetchone() == (True,)
    sql.execute("update underway.finished_run set state = 'failed'")
    for call in (f"underway.enqueue('echoes', {large})", f"underway.redrive('{failed}', {large})"):
        with pytest.raises(psycopg.Error) as raised:
            sql.execute(f"select {call}")
        assert raised.value.sqlstate == "UW005"
        assert "bytes as JSON text, and at most 8388608 are allowed" in str(raised.value)
    assert sql.execute("select count(*) from underway.run").fetchone() == (0,)
    largest = enqueued(sql, "underway.enqueue('echoes', to_jsonb(repeat('x', 8388606)))")
    size = "select input_bytes, octet_length(input::text) from underway.run where id = %s"
    assert sql.execute(size, [largest]).fetchone() == (8388608, 8388608)


@pytest.mark.parametrize("option", ["delay", "keep"])
@pytest.mark.parametrize("value", ["infinity", "-infinity"])
def test_infinity_is_not_a_duration(sql: Connection, option: str, value: str) -> None:
    with pytest.raises(psycopg.Error) as raised:  # before PostgreSQL 17 it is not an interval
        enqueued(sql, f"underway.enqueue('orders', {option} => interval '{value}')")
    assert raised.value.sqlstate == ("UW002" if sql.info.server_version >= 170000 else "22007")


def test_the_message_names_the_duration_and_its_bounds(sql: Connection) -> None:
    with pytest.raises(psycopg.Error) as raised:
        enqueued(sql, "underway.enqueue('orders', keep => '293000 years')")
    assert raised.value.diag.message_primary == "keep must lie between 0 and 365000 days, not 293000 years"


def test_a_run_of_the_longest_durations_can_end(sql: Connection) -> None:
    for duration in ("365000 days", "8760000 hours", "1013 years 10 months", "0", "1 month -10 days"):
        new = enqueued(sql, "underway.enqueue('orders', delay => %s, keep => %s)", [duration, duration])
        assert sql.execute("select underway.cancel(%s)", [new]).fetchone() == (True,)


def test_enqueue_is_part_of_the_callers_transaction(sql: Connection) -> None:
    with sql.transaction(force_rollback=True):
        enqueued(sql, "underway.enqueue('orders', '1')")
    with sql.transaction():
        kept = enqueued(sql, "underway.enqueue('orders', '2')")
        with sql.transaction(force_rollback=True):
            enqueued(sql, "underway.enqueue('orders', '3')")
    assert sql.execute("select id from underway.run").fetchall() == [(kept,)]


def test_ids_are_uuids_of_version_7(sql: Connection) -> None:
    rows = sql.execute("select underway.enqueue('echoes', '1') from generate_series(1, 200)").fetchall()
    ids = [row[0] for row in rows]
    assert len(set(ids)) == 200
    for new in ids:
        assert new.version == 7
        assert new.variant == "specified in RFC 4122"
        made = datetime.fromtimestamp((new.int >> 80) / 1000, UTC)
        assert abs(made - datetime.now(UTC)) < timedelta(minutes=5)
    # the random bits are random: each is seen both set and not set
    random_bits = (1 << 76) - 1 & ~(0x3 << 62)
    seen_set = seen_unset = 0
    for new in ids:
        seen_set |= new.int
        seen_unset |= ~new.int
    assert seen_set & random_bits == random_bits
    assert seen_unset & random_bits == random_bits


def test_the_callers_settings_do_not_matter(sql: Connection) -> None:
    sql.execute(
        "set search_path = ''; set datestyle = 'SQL, DMY'; set intervalstyle = 'iso_8601'; set timezone = 'UTC+9'"
    )
    sql.execute("create temp table run (id int)")  # nor does a table of the caller with one of our names
    sql.execute("set search_path = pg_temp, public")
    new = enqueued(sql, "underway.enqueue('placed', '1')")
    assert sql.execute("select step from underway.run where id = %s", [new]).fetchone() == ("echo",)


def test_a_notification_only_when_a_supervisor_is_idle(sql: Connection, any_database: str, app: Underway) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "function": lambda: enqueued(sql, "underway.enqueue('placed', '1')"),
        "enqueue": lambda: clients.placed.enqueue(1),
        "enqueue_many": lambda: clients.placed.enqueue_many([1, 2, 3]),
        "in a transaction": lambda: enqueue_twice(sql),
    }
    sql.execute(
        """insert into underway.supervisor (id, host, pid, app, idle)
        values (gen_random_uuid(), 'h', 1, 'a', false)"""
    )
    with psycopg.connect(any_database, autocommit=True) as listener:
        listener.execute("listen underway")
        for idle in (False, True):
            sql.execute("update underway.supervisor set idle = %s", [idle])
            for call in calls.values():
                call()
                # notifications arrive in order: when this one is here, so are the earlier ones
                sql.execute("notify underway, 'mark'")
                heard = []
                for notify in listener.notifies(timeout=10):
                    if notify.payload == "mark":
                        break
                    heard.append(notify.payload)
                assert heard == (["slow"] if idle else []), "at most one per transaction"


def enqueue_twice(connection: Connection) -> None:
    with connection.transaction():
        enqueued(connection, "underway.enqueue('placed', '1')")
        enqueued(connection, "underway.enqueue('placed', '2')")


def test_a_supervisor_executes_runs_enqueued_from_sql(
    sql: Connection, any_database: str, app: Underway, tmp_path: Path
) -> None:
    order = enqueued(sql, "underway.enqueue('orders', %s::jsonb)", ['{"number": 7, "note": "x"}'])
    strange = enqueued(sql, "underway.enqueue(%s, to_jsonb(%s::text))", [STRANGE, STRANGE])
    without = enqueued(sql, "underway.enqueue('looking')")
    misfit = enqueued(sql, "underway.enqueue('orders', '[]')")
    supervisor = Supervisor(f"{APPS}/clients.py:app", any_database, tmp_path / "log")
    try:
        assert handle(app, order).result(20) == Order(7, "x")
        assert handle(app, strange).result(20) == STRANGE
        assert handle(app, without).result(20)["job"] == "looking"
        # only a worker finds that an input does not fit its type
        failed = handle(app, misfit)
        while not (attempts := failed.attempts()):
            assert failed.status() is not Status.SUCCEEDED
        assert "PayloadError" in (attempts[0].error or "")
    finally:
        supervisor.end()


def handle(app: Underway, run_id: UUID) -> Run[Any]:
    return app.get_run(run_id)


def test_a_supervisor_registers_its_jobs(any_database: str, tmp_path: Path, app: Underway) -> None:
    assert Supervisor(f"{APPS}/clients.py:app", any_database, tmp_path / "log", "--until-idle").wait() == 0
    with psycopg.connect(any_database, autocommit=True) as connection:
        known = {row[0] for row in connection.execute("select name from underway.job")}
    assert known == set(clients.app.jobs)
