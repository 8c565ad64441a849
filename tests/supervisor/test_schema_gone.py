"""The schema disappears while supervisors serve, and returns: a restore, or a database that is recreated."""

import signal
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from apps import blocking
from db import Connection, value
from harness import Supervisor, eventually
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from underway import Underway
from underway.postgres import migrate
from underway.supervisor.exit_codes import ExitCode

Start = Callable[..., Supervisor]
Loss = Callable[[str, str, Supervisor], None]

WITHIN = 40.0  # less than the minute after which a supervisor writes its row anyway


@pytest.fixture
def supervisor(start_supervisor: Start, stage: Path, bind: Callable[[Underway], Underway]) -> Supervisor:
    """A supervisor with a run in progress."""
    bind(blocking.app)
    blocking.patient.enqueue("begun before")
    supervisor = start_supervisor("blocking", "--procs", "2", env={"FOLDER": str(stage)})
    eventually((stage / "begun before began").exists)
    blocking.app.close()
    return supervisor


def drop_schema(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("drop schema underway cascade")


def make_schema(database: str) -> None:
    with psycopg.connect(database) as connection:
        migrate.migrate(connection)


def schema_is_replaced_at_once(database: str, _server: str, _supervisor: Supervisor) -> None:
    """Perhaps no statement fails and connections stay open, but the supervisor is no longer registered."""
    with psycopg.connect(database) as connection:
        connection.execute("drop schema underway cascade")
        migrate.migrate(connection)


def schema_is_missing_for_a_while(database: str, _server: str, supervisor: Supervisor) -> None:
    drop_schema(database)
    supervisor.until("the database has no underway schema", within=WITHIN)
    make_schema(database)


def database_is_missing_for_a_while(database: str, server: str, supervisor: Supervisor) -> None:
    name = str(conninfo_to_dict(database)["dbname"])
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))
        supervisor.until("does not exist", within=WITHIN)
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    supervisor.until("the database has no underway schema", within=WITHIN)
    make_schema(database)


def schema_is_partly_restored(database: str, _server: str, supervisor: Supervisor) -> None:
    """The state in the middle of a restore that is not a single transaction."""
    drop_schema(database)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("create schema underway")
        connection.execute("create table underway.migration (version int primary key, oldest_code int)")
        supervisor.until("the database has no underway schema", within=WITHIN)
        connection.execute("insert into underway.migration values (0, 1)")
        supervisor.until("the database is at migration 0", within=WITHIN)
    drop_schema(database)
    make_schema(database)


def schema_is_too_new(database: str, _server: str, supervisor: Supervisor) -> None:
    """A dump of a newer version was restored by mistake, and then the right one."""
    drop_schema(database)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("create schema underway")
        connection.execute("create table underway.migration as select 9999 as version, 9999 as oldest_code")
        supervisor.until("install the newer version of underway", within=WITHIN)
    drop_schema(database)
    make_schema(database)


LOSSES = [
    schema_is_replaced_at_once,
    schema_is_missing_for_a_while,
    database_is_missing_for_a_while,
    schema_is_partly_restored,
    schema_is_too_new,
]


@pytest.mark.parametrize("lose", LOSSES, ids=lambda lose: lose.__name__)
def test_a_supervisor_continues_when_the_schema_is_back(
    database: str, server: str, supervisor: Supervisor, stage: Path, lose: Loss
) -> None:
    lose(database, server, supervisor)
    with psycopg.connect(database, autocommit=True) as connection:
        run = _enqueue_in_sql(connection, "begun after")
        eventually((stage / "begun after began").exists, within=WITHIN, what=supervisor.log)
        (stage / "begun after").touch()
        step = "select step from underway.run where id = %s"
        eventually(lambda: value(connection, step, [run]) == "later", within=WITHIN, what=supervisor.log)
        # The new schema does not have the run that was in progress, so nothing is written for that run.
        (stage / "begun before").touch()
        assert supervisor.process.poll() is None
        supervisor.send(signal.SIGTERM)
        assert supervisor.wait() == ExitCode.CLEAN
        assert value(connection, "select array_agg(run_id) from underway.attempt") == [run]


def _enqueue_in_sql(connection: Connection, name: str) -> UUID:
    """Enqueue in SQL, after the supervisor has registered the job in the new schema."""
    known = "select exists (select from underway.job where name = 'patient')"
    eventually(lambda: value(connection, known), within=WITHIN, what="the job is known again")
    run = value(connection, "select underway.enqueue('patient', to_jsonb(%s::text))", [name])
    assert isinstance(run, UUID)
    return run
