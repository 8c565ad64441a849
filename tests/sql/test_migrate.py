"""Migrations: of an empty database, repeated, concurrent, too old, too new, and without privileges."""

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from db import Connection, insert, value
from harness import eventually
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from underway import Underway
from underway.errors import SchemaError, SchemaMissing, SchemaTooNew, SchemaTooOld
from underway.postgres import client_queries, migrate
from underway.postgres.queries import statements
from underway.postgres.reconnecting import ReconnectingConnection

KNOWN = migrate.migrations()
NEWEST = KNOWN[-1].version
ALL = [migration.full_name for migration in KNOWN]


def run_cli(*arguments: str, database: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the command `underway`."""
    environment = {name: text for name, text in os.environ.items() if not name.endswith("DATABASE_URL")}
    if database is not None:
        environment["UNDERWAY_DATABASE_URL"] = database
    return subprocess.run(
        [sys.executable, "-m", "underway.cli.main", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def history(connection: Connection) -> list[tuple[int, str, int]]:
    query = "select version, name, oldest_code from underway.migration order by version"
    return connection.execute(query).fetchall()


@pytest.fixture
def empty(empty_database: str) -> Iterator[Connection]:
    """A connection in psycopg's default mode to a database without the schema."""
    with psycopg.connect(empty_database) as connection:
        yield connection


# The files


def test_migrations_are_numbered_without_gaps_and_state_the_oldest_code() -> None:
    assert [migration.version for migration in KNOWN] == list(range(1, len(KNOWN) + 1))
    assert all(1 <= migration.oldest_code <= migration.version for migration in KNOWN)


def test_a_definition_comes_after_those_that_it_uses() -> None:
    names = [definition.name for definition in migrate.definitions()]
    assert names.index("views/stranded_lane") < names.index("views/stranded")
    assert names.index("functions/cancel_runs") < names.index("functions/cancel")


def test_each_definition_creates_the_object_that_its_file_is_named_after() -> None:
    for definition in migrate.definitions():
        kind, name = definition.name.split("/")
        assert re.findall(r"^create .*", definition.sql, re.MULTILINE)[0].startswith(
            f"create or replace {kind.removesuffix('s')} underway.{name}"
        )
        assert len(re.findall(r"^create ", definition.sql, re.MULTILINE)) == 1


# First and repeated migrations


def test_an_empty_database_gets_the_schema_and_its_history(empty_database: str) -> None:
    with psycopg.connect(empty_database) as connection:
        assert migrate.migrate(connection) == ALL
    with psycopg.connect(empty_database) as connection:
        allowed = {step.version: step.oldest_code for step in KNOWN}
        assert history(connection) == [(step.version, step.name, allowed[step.version]) for step in KNOWN]
        assert client_queries.applied_migrations(connection) == allowed
        tables = connection.execute("select tablename from pg_tables where schemaname = 'underway'").fetchall()
        assert {"run", "finished_run", "attempt", "migration"} <= {name for (name,) in tables}
        assert value(connection, "select count(*) from pg_class where relnamespace = 'public'::regnamespace") == 0


def test_a_second_migration_changes_nothing(connection: Connection) -> None:
    def catalog() -> list[tuple[Any, ...]]:
        return connection.execute(
            "select oid, relname, xmin::text from pg_class where relnamespace = 'underway'::regnamespace order by oid"
        ).fetchall()

    before = catalog(), history(connection)
    assert migrate.migrate(connection) == []
    assert (catalog(), history(connection)) == before


def test_the_schema_works_on_the_oldest_postgres(any_database: str) -> None:
    with psycopg.connect(any_database) as connection:
        assert migrate.migrate(connection) == []
        assert len(history(connection)) == len(ALL)


@pytest.mark.parametrize("path", ["", "public, pg_temp", '"$user", elsewhere'])
def test_the_search_path_is_neither_used_nor_changed(empty: Connection, path: str) -> None:
    empty.execute("create schema elsewhere")
    # Other tables with the same names, first in the path.
    empty.execute("create table elsewhere.run (other int); create table elsewhere.migration (version int)")
    empty.execute("select set_config('search_path', %s, false)", [path])
    migrate.migrate(empty)
    assert value(empty, "show search_path") == path
    assert value(empty, "select count(*) from elsewhere.migration") == 0
    assert value(empty, "select count(*) from underway.run") == 0


def test_the_row_factory_of_the_connection_does_not_matter(empty_database: str) -> None:
    with psycopg.connect(empty_database, row_factory=dict_row) as connection:
        assert migrate.migrate(connection) == ALL
        assert migrate.migrate(connection) == []


def test_in_the_callers_transaction_only_the_caller_commits(empty_database: str) -> None:
    with psycopg.connect(empty_database) as connection:
        connection.execute("create table theirs ()")
        assert migrate.migrate(connection) == ALL
        connection.rollback()
        assert client_queries.applied_migrations(connection) is None
        assert value(connection, "select to_regclass('theirs')") is None

        assert migrate.migrate(connection) == ALL
        connection.commit()
        assert migrate.migrate(connection) == []


def test_a_migration_that_fails_leaves_nothing_behind(empty: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = migrate.Migration(NEWEST + 1, "broken", 1, "create table underway.half (); select 1 / 0")
    monkeypatch.setattr(migrate, "migrations", lambda: (*KNOWN, broken))
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate.migrate(empty)
    assert value(empty, "select to_regnamespace('underway')") is None


def test_an_upgrade_applies_only_what_is_missing(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    new = migrate.Migration(NEWEST + 1, "more", 1, "create table underway.more ()")
    monkeypatch.setattr(migrate, "migrations", lambda: (*KNOWN, new))
    with pytest.raises(SchemaTooOld):
        migrate.check(client_queries.applied_migrations(connection))
    assert migrate.migrate(connection) == [f"{NEWEST + 1:04d}_more"]
    migrate.check(client_queries.applied_migrations(connection))


def changed(name: str) -> Callable[[], tuple[migrate.Definition, ...]]:
    """The definitions of a release that has changed the text of this one."""
    definitions = tuple(
        migrate.Definition(name, f"{definition.sql}\n-- changed") if definition.name == name else definition
        for definition in migrate.definitions()
    )
    return lambda: definitions


def test_a_definition_is_applied_again_when_its_text_has_changed(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(function: str) -> str:
        return str(value(connection, "select xmin from pg_proc where oid = to_regproc(%s)", [function]))

    before = version("underway.cancel"), version("underway.status")
    monkeypatch.setattr(migrate, "definitions", changed("functions/cancel"))
    assert migrate.migrate(connection) == ["functions/cancel"]
    assert version("underway.cancel") != before[0]
    assert version("underway.status") == before[1]
    assert migrate.migrate(connection) == []


def test_a_definition_that_is_applied_again_keeps_the_grants_of_users(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    grants = "select proacl::text from pg_proc where oid = to_regproc('underway.enqueue')"
    role = sql.Identifier(f"underway_grantee_{uuid4().hex[:8]}")
    connection.execute(sql.SQL("create role {}").format(role))
    try:
        connection.execute(sql.SQL("grant execute on function underway.enqueue to {}").format(role))
        before = value(connection, grants)
        assert role.as_string().strip('"') in before
        monkeypatch.setattr(migrate, "definitions", changed("functions/enqueue"))
        assert migrate.migrate(connection) == ["functions/enqueue"]
        assert value(connection, grants) == before
    finally:
        connection.execute(sql.SQL("drop owned by {0}; drop role {0}").format(role))


def test_older_code_does_not_replace_newer_definitions(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    add = "insert into underway.migration (version, name, oldest_code) values (%s, 'expanded', %s)"
    connection.execute(add, [NEWEST + 1, NEWEST])
    monkeypatch.setattr(migrate, "definitions", changed("functions/enqueue"))
    assert migrate.migrate(connection) == []


@pytest.mark.parametrize("level", [r"read\ committed", r"repeatable\ read", "serializable"])
def test_one_of_many_concurrent_migrations_applies_and_all_succeed(empty_database: str, level: str) -> None:
    """At any default isolation level of the database, the role or the connection string."""
    starters = 8
    url = make_conninfo(empty_database, options=f"-c default_transaction_isolation={level}")
    barrier = threading.Barrier(starters)
    applied: list[list[str]] = []
    failures: list[BaseException] = []

    def start() -> None:
        try:
            with psycopg.connect(url) as connection:
                barrier.wait(30)
                applied.append(migrate.migrate(connection))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(starters)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(applied, key=len) == [[]] * (starters - 1) + [ALL]


def test_a_migration_may_take_longer_than_transaction_timeout(empty_database: str, empty: Connection) -> None:
    name = sql.Identifier(empty.info.dbname)
    empty.execute(sql.SQL("alter database {} set transaction_timeout = '50ms'").format(name))
    empty.commit()
    empty.execute(statements()["lock_migrations"])
    end = threading.Timer(0.3, empty.rollback)
    with psycopg.connect(empty_database, autocommit=True) as connection:
        end.start()
        assert migrate.migrate(connection) == ALL
        assert value(connection, "show transaction_timeout") == "50ms"
    end.join()


# Incompatible schemas

Change = Callable[[Connection], None]


def _drop_schema(connection: Connection) -> None:
    connection.execute("drop schema underway cascade")


def _no_history(connection: Connection) -> None:
    connection.execute("truncate underway.migration")


def _older(connection: Connection) -> None:
    connection.execute("update underway.migration set version = version - 1 where version = 1")
    connection.execute("delete from underway.migration where version = %s", [NEWEST])


def _newer(connection: Connection) -> None:
    connection.execute(
        "insert into underway.migration (version, name, oldest_code) values (%s, 'contracted', %s)",
        [NEWEST + 2, NEWEST + 1],
    )


INCOMPATIBLE = [
    pytest.param(_drop_schema, SchemaMissing, "underway migrate", id="missing"),
    pytest.param(_no_history, SchemaMissing, "underway migrate", id="without history"),
    pytest.param(_older, SchemaTooOld, "underway migrate", id="too old"),
    pytest.param(_newer, SchemaTooNew, "install the newer version", id="too new"),
]


@pytest.mark.parametrize(("change", "expected", "advice"), INCOMPATIBLE)
def test_an_incompatible_schema_is_refused_with_advice(
    database: str,
    connection: Connection,
    change: Callable[[Connection], None],
    expected: type[SchemaError],
    advice: str,
) -> None:
    change(connection)
    with pytest.raises(expected, match=advice):
        migrate.check(client_queries.applied_migrations(connection))

    async def supervisor() -> None:
        session = ReconnectingConnection(database)
        try:
            await session.open()
        finally:
            await session.close()

    with pytest.raises(expected, match=advice):
        asyncio.run(supervisor())

    app = Underway(database)
    try:
        with pytest.raises(expected, match=advice), app.connection():
            pass
    finally:
        app.close()


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_whose_encoding_is_not_utf8_is_refused(server: str, encoding: str) -> None:
    """(Such a database could not store an error with an emoji: the run was quarantined without a trace of it.)"""
    name = sql.Identifier(f"other_{uuid4().hex}")
    advice = f"the encoding of the database is {encoding}, .* encoding 'UTF8' template template0"
    with psycopg.connect(server, autocommit=True) as superuser:
        create = "create database {} encoding {} locale 'C' template template0"
        superuser.execute(sql.SQL(create).format(name, sql.Literal(encoding)))
        try:
            url = make_conninfo(server, dbname=name.as_string().strip('"'))
            with psycopg.connect(url) as connection, pytest.raises(SchemaError, match=advice):
                migrate.migrate(connection)

            async def supervisor() -> None:
                session = ReconnectingConnection(url)
                try:
                    await session.open()
                finally:
                    await session.close()

            with pytest.raises(SchemaError, match=advice):
                asyncio.run(supervisor())
        finally:
            superuser.execute(sql.SQL("drop database {} with (force)").format(name))


def test_code_that_is_too_old_does_not_migrate(connection: Connection) -> None:
    _newer(connection)
    before = history(connection)
    with pytest.raises(SchemaTooNew):
        migrate.migrate(connection)
    assert history(connection) == before


def test_a_newer_schema_that_allows_this_code_is_used(connection: Connection) -> None:
    connection.execute("insert into underway.migration values (%s, 'expanded', %s)", [NEWEST + 1, NEWEST])
    migrate.check(client_queries.applied_migrations(connection))
    assert migrate.migrate(connection) == []


def test_reading_a_missing_history_leaves_the_callers_transaction_usable(empty: Connection) -> None:
    empty.execute("create table theirs ()")
    assert client_queries.applied_migrations(empty) is None
    assert value(empty, "select count(*) from theirs") == 0


# The command


def test_the_command_migrates_once_and_says_so(empty_database: str) -> None:
    first, second = run_cli("migrate", "--database", empty_database), run_cli("migrate", database=empty_database)
    assert (first.returncode, first.stdout, first.stderr) == (0, "".join(f"applied {name}\n" for name in ALL), "")
    assert (second.returncode, second.stdout, second.stderr) == (0, "the schema is up to date\n", "")


def test_the_command_reports_an_error_without_a_traceback(database: str, connection: Connection) -> None:
    _newer(connection)
    result = run_cli("migrate", database=database)
    assert result.returncode == 1
    assert result.stdout == ""
    assert "install the newer version of underway" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_command_asks_for_a_database(database: str) -> None:
    result = run_cli("migrate")
    assert result.returncode == 1
    assert "UNDERWAY_DATABASE_URL" in result.stderr
    assert "Traceback" not in result.stderr


SECRET = "open-sesame"


@pytest.mark.parametrize(
    "url",
    [
        pytest.param(f"postgresql://me:{SECRET}@127.0.0.1:1/shop", id="refused"),
        pytest.param(f"host=127.0.0.1 port=1 user=me password={SECRET}", id="refused, key=value"),
        pytest.param(f"postgresql://me:{SECRET}@no-such-host.invalid/shop", id="unknown host"),
        pytest.param(f"postgresql://me:{SECRET}@127.0.0.1:notaport/shop", id="bad port"),
        pytest.param(f"postgresql://me:{SECRET}@127.0.0.1:1/shop?nonsense={SECRET}", id="bad option"),
        pytest.param(f"postgresql//me:{SECRET}@127.0.0.1/shop", id="not a URL"),
        pytest.param(f"host=127.0.0.1 password='{SECRET}", id="open quote"),
    ],
)
@pytest.mark.parametrize("by", ["option", "environment"])
def test_an_error_never_shows_the_password(url: str, by: str) -> None:
    result = run_cli("migrate", "--database", url) if by == "option" else run_cli("migrate", database=url)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("Error: ")
    assert SECRET not in result.stderr + result.stdout


# Roles


@pytest.fixture
def restricted_role(database: str, connection: Connection) -> Iterator[str]:
    """The URL of a role that may use the schema, but create nothing in this database."""
    role = sql.Identifier("underway_reader")
    connection.execute(sql.SQL("drop role if exists {}").format(role))
    connection.execute(sql.SQL("create role {} login").format(role))
    connection.execute(sql.SQL("grant usage on schema underway to {}").format(role))
    connection.execute(sql.SQL("grant select on all tables in schema underway to {}").format(role))
    yield make_conninfo(database, user="underway_reader")
    connection.execute(sql.SQL("drop owned by {}").format(role))
    connection.execute(sql.SQL("drop role {}").format(role))


def test_a_role_without_create_may_migrate_a_schema_that_is_up_to_date(restricted_role: str) -> None:
    with psycopg.connect(restricted_role) as connection:
        assert migrate.migrate(connection) == []
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("create schema another")
    result = run_cli("migrate", database=restricted_role)
    assert (result.returncode, result.stdout) == (0, "the schema is up to date\n")


def test_a_role_without_create_is_refused_when_a_migration_is_missing(
    restricted_role: str, connection: Connection
) -> None:
    connection.execute("drop schema underway cascade")
    result = run_cli("migrate", database=restricted_role)
    assert result.returncode == 1
    assert "permission denied" in result.stderr
    assert "Traceback" not in result.stderr


# Locks


@pytest.fixture
def outdated_database(database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database that lacks the newest migration, which changes a table."""
    new = migrate.Migration(NEWEST + 1, "more", 1, "alter table underway.run add column more int")
    monkeypatch.setattr(migrate, "migrations", lambda: (*KNOWN, new))
    return database


def test_a_migration_that_waits_for_a_lock_lets_others_through(
    outdated_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statement that needs a table for which a migration waits must wait behind the migration."""
    monkeypatch.setattr(migrate, "_LOCK_TIMEOUT", "500ms")
    with (
        psycopg.connect(outdated_database) as reader,
        psycopg.connect(outdated_database, autocommit=True) as worker,
    ):
        reader.execute("select count(*) from underway.run")  # and stays open, like a dump
        applied: list[str] = []

        def upgrade() -> None:
            with psycopg.connect(outdated_database) as connection:
                applied.extend(migrate.migrate(connection))

        migrating = threading.Thread(target=upgrade)
        migrating.start()
        waiting = "select count(*) from pg_locks where not granted and relation = 'underway.run'::regclass"
        eventually(lambda: value(worker, waiting))
        insert(worker)
        assert migrating.is_alive()
        reader.rollback()
        migrating.join()
    assert applied == [f"{NEWEST + 1:04d}_more"]


def test_a_migration_that_cannot_lock_its_tables_says_so(
    outdated_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "_TRIES", 2)
    monkeypatch.setattr(migrate, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(migrate, "_LOCK_TIMEOUT", "50ms")
    with psycopg.connect(outdated_database) as reader, psycopg.connect(outdated_database) as connection:
        reader.execute("select count(*) from underway.runs")
        with pytest.raises(SchemaError, match=r"migration not applied: .* pg_stat_activity"):
            migrate.migrate(connection)
        reader.rollback()
        assert value(connection, "show lock_timeout") == "0"
        assert migrate.migrate(connection) == [f"{NEWEST + 1:04d}_more"]
        assert value(connection, "show lock_timeout") == "0"
