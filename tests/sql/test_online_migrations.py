"""The online phase of a migration: outside of transactions, resumable after a kill, while supervisors run."""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest
from apps import basic
from db import Connection, insert, value
from harness import Supervisor, eventually

from underway import Status, Underway
from underway.postgres import client_queries, migrate, online
from underway.postgres.queries import read
from underway.testing import using_database

KNOWN = migrate.migrations()
PHASE = "0002_run_job_key.online"
INDEX = "select indisvalid from pg_index where indexrelid = to_regclass('underway.run_job_key')"
ONLINE_AT = "select online_at is not null from underway.migration where version = 2"
# They may hold millions of rows, and `create index` blocks all writes until it is done.
LARGE = "run|finished_run|attempt"


@pytest.fixture
def first_only(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database that has only the first migration."""
    with monkeypatch.context() as patched, psycopg.connect(empty_database) as connection:
        patched.setattr(migrate, "migrations", lambda: KNOWN[:1])
        assert migrate.migrate(connection) == [KNOWN[0].full_name]
    return empty_database


def index_is_valid(connection: Connection) -> bool | None:
    row = connection.execute(INDEX).fetchone()
    return None if row is None else bool(row[0])


# The files


def test_no_migration_after_the_first_locks_a_large_table_for_an_index() -> None:
    for name, text in read("migrations").items():
        if name.startswith("0001_"):
            continue
        statements = re.sub(r"^--.*$", "", text, flags=re.MULTILINE).lower()
        locking = rf"create\s+(unique\s+)?index\s+(?!concurrently)\S.*?\bon\s+underway\.({LARGE})\b"
        assert not re.search(locking, statements, re.DOTALL), (
            f"{name}: use `create index concurrently` in NNNN.online.sql"
        )
        assert "concurrently" not in statements or name.endswith(".online"), name


def test_an_online_phase_belongs_to_a_migration_and_can_be_repeated() -> None:
    names = {migration.full_name for migration in KNOWN}
    assert {name.removesuffix(".online") for name in read("migrations") if name.endswith(".online")} <= names
    for migration in KNOWN:
        for statement in migration.online_phase:
            assert statement.index or statement.repeats, statement.sql
            assert not statement.repeats or "limit" in statement.sql


# On a new database


def test_a_new_database_needs_no_online_phase(empty_database: str) -> None:
    with psycopg.connect(empty_database) as connection:
        assert migrate.migrate(connection) == [migration.full_name for migration in KNOWN]
        assert index_is_valid(connection) is True
        assert value(connection, ONLINE_AT)


# On a database in use


def test_an_upgrade_runs_the_online_phase_after_its_commit(first_only: str) -> None:
    with psycopg.connect(first_only) as connection:
        connection.execute("set statement_timeout = '1h'")
        connection.commit()
        assert migrate.migrate(connection) == [KNOWN[1].full_name, PHASE]
        assert migrate.migrate(connection) == []
        assert index_is_valid(connection) is True
        assert value(connection, ONLINE_AT)
        assert value(connection, "show statement_timeout") == "1h"
        assert not connection.autocommit


def test_in_the_callers_transaction_the_online_phase_is_left_to_the_next_call(first_only: str) -> None:
    with psycopg.connect(first_only) as connection:
        connection.execute("create table theirs ()")
        assert migrate.migrate(connection) == [KNOWN[1].full_name]
        connection.commit()
        migrate.check(client_queries.applied_migrations(connection))  # the code works without it
        assert index_is_valid(connection) is None
        connection.commit()
        assert migrate.migrate(connection) == [PHASE]
        assert index_is_valid(connection) is True


def test_one_of_many_concurrent_migrations_runs_the_online_phase(first_only: str) -> None:
    barrier = threading.Barrier(4)
    applied: list[str] = []

    def start() -> None:
        with psycopg.connect(first_only) as connection:
            barrier.wait(30)
            applied.extend(migrate.migrate(connection))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(applied) == [KNOWN[1].full_name, PHASE]


@contextmanager
def building(database: str) -> Iterator[tuple[subprocess.Popen[bytes], Connection]]:
    """`underway migrate` in the middle of building the index, which waits for a transaction that has an old snapshot.

    The transaction ends with the context.
    """
    with psycopg.connect(database) as reader, psycopg.connect(database, autocommit=True) as connection:
        reader.execute("set transaction isolation level repeatable read")
        reader.execute("select count(*) from underway.run")
        command = [sys.executable, "-m", "underway.cli.main", "migrate", "--database", database]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            try:
                eventually(lambda: index_is_valid(connection) is False, what="the index is being built")
                yield process, connection
            finally:
                process.kill()


# A waiting migrator tries the lock repeatedly, and is idle in between.
WAITING = "select pid from pg_stat_activity where query like '%pg_try_advisory_lock%' and state = 'idle'"
BUILDER = "select pid from pg_stat_activity where query like '%create index concurrently%' and pid <> pg_backend_pid()"


def test_a_migration_waits_for_the_backend_of_a_killed_migrator(first_only: str) -> None:
    applied: list[str] = []

    def migrate_again() -> None:
        with psycopg.connect(first_only) as connection:
            applied.extend(migrate.migrate(connection))

    with building(first_only) as (process, connection):
        process.send_signal(signal.SIGKILL)
        process.wait()
        second = threading.Thread(target=migrate_again)
        second.start()
        eventually(lambda: connection.execute(WAITING).fetchone())
        assert second.is_alive()
    second.join()
    assert applied == [PHASE]
    with psycopg.connect(first_only) as connection:
        assert index_is_valid(connection) is True
        assert value(connection, ONLINE_AT)


def test_a_half_built_index_is_built_again(first_only: str) -> None:
    with building(first_only) as (process, connection):
        process.send_signal(signal.SIGKILL)
        process.wait()
        connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where query like '%concurrently%'"
                           " and pid <> pg_backend_pid()")  # fmt: skip
        eventually(lambda: connection.execute(BUILDER).fetchone() is None)
        assert index_is_valid(connection) is False
    with psycopg.connect(first_only) as connection:
        assert not value(connection, ONLINE_AT)
        connection.rollback()
        assert migrate.migrate(connection) == [PHASE]
        assert index_is_valid(connection) is True


def test_supervisors_work_while_an_index_is_built(first_only: str, start_supervisor: Callable[..., Supervisor]) -> None:
    with psycopg.connect(first_only) as connection:
        connection.execute("create table theirs ()")
        migrate.migrate(connection)  # without the online phase
    supervisor = start_supervisor("basic", "--procs", "1", "--database", first_only)
    supervisor.until("serving")
    with building(first_only) as (process, connection):
        with using_database(basic.app, first_only):
            assert basic.orders.enqueue(basic.Order(1)).wait(30) is Status.SUCCEEDED
        assert process.poll() is None
        assert index_is_valid(connection) is False
    assert "lock" not in supervisor.log


# Batches

BACKFILL = """
-- repeat until no rows
with batch as (
    select id, pg_sleep(0.002) from underway.run where priority = 0 order by id limit 50 for no key update
)
update underway.run set priority = 1 where id in (select id from batch);
"""
SLOW_MIGRATOR = """
import sys, psycopg
from underway.postgres import migrate, online
known = migrate.migrations()
added = migrate.Migration(len(known) + 1, "backfill", 1, "", online.split(sys.argv[2]))
migrate.migrations = lambda: (*known, added)
with psycopg.connect(sys.argv[1]) as connection:
    print(migrate.migrate(connection))
"""


def test_a_backfill_resumes_after_a_kill_and_skips_no_locked_row(database: str, connection: Connection) -> None:
    for _ in range(1000):
        insert(connection)
    changed = "select count(*) from underway.run where priority = 1"
    command = [sys.executable, "-c", SLOW_MIGRATOR, database, BACKFILL]
    with subprocess.Popen(command) as process:
        eventually(lambda: value(connection, changed) > 0)
        process.send_signal(signal.SIGKILL)
    done = value(connection, changed)
    assert done < 1000
    with psycopg.connect(database) as other:
        other.execute("select from underway.run where priority = 0 limit 1 for update")
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            waiting = "select exists (select from pg_stat_activity where wait_event_type = 'Lock')"
            eventually(lambda: value(connection, waiting))
            other.rollback()
            printed, _ = process.communicate(timeout=60)
            assert printed == f"['{len(KNOWN) + 1:04d}_backfill.online']\n"
    assert value(connection, changed) == 1000


def test_a_file_is_split_into_its_statements() -> None:
    first, second = online.split(f"create index concurrently a on underway.run (id);\n{BACKFILL}")
    assert (first.index, first.repeats) == ("underway.a", False)
    assert (second.index, second.repeats) == (None, True)
    assert first.inside_transaction == "create index a on underway.run (id)"


def test_app_migrate_runs_online_phases(first_only: str) -> None:
    app = Underway(first_only)
    try:
        assert app.migrate() == [KNOWN[1].full_name, PHASE]
    finally:
        app.close()
