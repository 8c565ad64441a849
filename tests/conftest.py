"""A separate migrated database for every test, and supervisors that end with the test."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from harness import Supervisor
from places import APPS
from postgres_servers import debian_server

from underway import Underway
from underway.testing import TemporaryPostgres, using_database

pytest_plugins = ["underway.testing", "chaos_report"]

# A developer's own database must not be used, and some tests expect that none is specified.
for _name in ("UNDERWAY_DATABASE_URL", "DATABASE_URL"):
    os.environ.pop(_name, None)


@pytest.fixture(scope="session")
def server(underway_postgres: TemporaryPostgres) -> str:
    """The URL of a superuser on the test server."""
    return underway_postgres.url


@pytest.fixture(scope="session")
def old_postgres() -> Iterator[TemporaryPostgres]:
    """The oldest Postgres on this machine; skips the test if there is none."""
    with ExitStack() as stack:
        url = stack.enter_context(debian_server())
        if url is None:
            pytest.skip("no Debian PostgreSQL on this machine")
        yield TemporaryPostgres(url, stack)


@pytest.fixture
def database(underway_database: str) -> str:
    """The URL of a fresh database with the schema."""
    return underway_database


@pytest.fixture(scope="module")
def module_database(underway_postgres: TemporaryPostgres) -> Iterator[str]:
    """Like `database`, but shared by the tests of a module, which must not change it."""
    with underway_postgres.database() as url:
        yield url


@pytest.fixture
def empty_database(underway_postgres: TemporaryPostgres) -> Iterator[str]:
    """The URL of a fresh database without the schema."""
    with underway_postgres.database(migrated=False) as url:
        yield url


@pytest.fixture(params=["underway_postgres", "old_postgres"])
def any_database(request: pytest.FixtureRequest) -> Iterator[str]:
    """Like `database`, once on the test server and once on the oldest Postgres."""
    with request.getfixturevalue(request.param).database() as url:
        yield url


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection[Any]]:
    """An autocommit connection to `database`."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def any_connection(any_database: str) -> Iterator[psycopg.Connection[Any]]:
    """An autocommit connection to `any_database`."""
    with psycopg.connect(any_database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def bind(database: str) -> Iterator[Callable[[Underway], Underway]]:
    """Make an app of tests/support/apps use `database` during the test."""
    with ExitStack() as bound:

        def to_database(app: Underway) -> Underway:
            bound.enter_context(using_database(app, database))
            return app

        yield to_database


@pytest.fixture
def start_supervisor(database: str, tmp_path: Path) -> Iterator[Callable[..., Supervisor]]:
    """Start a supervisor on `database`: start_supervisor("name", "--procs", "2") serves apps/name.py:app."""
    started: list[Supervisor] = []

    def start(app: str, *options: str, env: dict[str, str] | None = None) -> Supervisor:
        address = app if ":" in app else f"{APPS / app}.py:app"
        supervisor = Supervisor(address, database, tmp_path / f"supervisor{len(started)}.log", *options, env=env)
        started.append(supervisor)
        return supervisor

    yield start
    for supervisor in started:
        supervisor.end()


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """The folder in which the steps of an app look for files and write some."""
    folder = tmp_path / "stage"
    folder.mkdir()
    return folder
