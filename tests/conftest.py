"""A migrated database of its own for every test, and supervisors that end with it."""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from harness import APPS, Supervisor
from postgres_servers import debian_server, server_url
from psycopg import sql
from psycopg.conninfo import make_conninfo

from underway import Underway
from underway.postgres import migrate

_numbers = itertools.count(1)
# Of this process: several may share one server.
_PREFIX = f"underway_test_{os.getpid()}"
_TEMPLATE = sql.Identifier(f"{_PREFIX}_template")

# A developer's own database is nobody's business here, least of all that of a test that expects none to be named.
for _name in ("UNDERWAY_DATABASE_URL", "DATABASE_URL"):
    os.environ.pop(_name, None)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of a superuser on the test server."""
    with server_url() as url:
        _make_template(url)
        yield url
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(sql.SQL("drop database {}").format(_TEMPLATE))


@pytest.fixture(scope="session")
def old_server() -> Iterator[str]:
    """The oldest Postgres on this machine; skips where there is none."""
    with debian_server() as url:
        if url is None:
            pytest.skip("no Debian PostgreSQL on this machine")
        _make_template(url)
        yield url


@pytest.fixture
def database(server: str) -> Iterator[str]:
    """The URL of a fresh database with the schema."""
    yield from _fresh_database(server, template=True)


@pytest.fixture(scope="module")
def module_database(server: str) -> Iterator[str]:
    """Like `database`, but one for all tests of a module, which do not change it."""
    yield from _fresh_database(server, template=True)


@pytest.fixture
def empty_database(server: str) -> Iterator[str]:
    """The URL of a fresh database without the schema."""
    yield from _fresh_database(server, template=False)


@pytest.fixture(params=["server", "old_server"])
def any_database(request: pytest.FixtureRequest) -> Iterator[str]:
    """Like `database`, once on the test server and once on the oldest Postgres there is."""
    yield from _fresh_database(request.getfixturevalue(request.param), template=True)


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
    """Make an app of tests/apps use `database` for the length of the test."""
    bound: list[Underway] = []

    def to_database(app: Underway) -> Underway:
        app._database = database
        bound.append(app)
        return app

    yield to_database
    for app in bound:
        app.close()
        app._database = None


@pytest.fixture
def start_supervisor(database: str, tmp_path: Path) -> Iterator[Callable[..., Supervisor]]:
    """Start a supervisor on `database`: start_supervisor("name", "--procs", "2") serves tests/apps/name.py:app."""
    started: list[Supervisor] = []

    def start(app: str, *options: str, env: dict[str, str] | None = None) -> Supervisor:
        address = app if ":" in app else f"{APPS / app}.py:app"
        supervisor = Supervisor(address, database, tmp_path / f"supervisor{len(started)}.log", *options, env=env)
        started.append(supervisor)
        return supervisor

    yield start
    for supervisor in started:
        supervisor.end()


def _make_template(server: str) -> None:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("drop database if exists {}").format(_TEMPLATE))
        connection.execute(sql.SQL("create database {}").format(_TEMPLATE))
    with psycopg.connect(make_conninfo(server, dbname=f"{_PREFIX}_template")) as connection:
        migrate.migrate(connection)


def _fresh_database(server: str, *, template: bool) -> Iterator[str]:
    name = f"{_PREFIX}_{next(_numbers)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))
        source = sql.SQL("template {}").format(_TEMPLATE) if template else sql.SQL("")
        connection.execute(sql.SQL("create database {} {}").format(sql.Identifier(name), source))
        yield make_conninfo(server, dbname=name)
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """The folder in which the steps of an app look for files, and leave some."""
    folder = tmp_path / "stage"
    folder.mkdir()
    return folder


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print at once, past pytest's capture."""

    def out(text: str) -> None:
        with capsys.disabled():
            print(text, flush=True)

    return out
