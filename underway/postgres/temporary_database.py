"""Databases that are created and dropped with a test, and time that the test advances."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from underway.postgres import migrate
from underway.postgres.query import fetch

_EMPTY_SECONDS = 5.0


@contextmanager
def database(server: str, name: str, *, template: str | None = None) -> Iterator[str]:
    """The URL of a new database, which replaces any of that name. At the end it is dropped, even if it is in use."""
    identifier = sql.Identifier(name)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(identifier))
        source = _copied(connection, template) if template else sql.SQL("")
        connection.execute(sql.SQL("create database {} {}").format(identifier, source))
        try:
            yield make_conninfo(server, dbname=name)
        finally:
            _empty(connection, name)
            connection.execute(sql.SQL("drop database if exists {} with (force)").format(identifier))


def _copied(connection: psycopg.Connection[Any], template: str) -> sql.Composable:
    """Copy file by file if fsync is off: half the work of copying pages, but its checkpoints wait for the disk."""
    source = sql.SQL("template {}").format(sql.Identifier(template))
    synced = connection.execute("show fsync").fetchone() == ("on",)
    if synced or connection.info.server_version < 150000:  # older servers have no strategies
        return source
    return source + sql.SQL(" strategy file_copy")


def _empty(connection: psycopg.Connection[Any], name: str) -> None:
    """Wait until no session is connected to the database.

    Postgres polls for this only ten times a second: a drop took 70 ms, and slept for 60 of them although the last
    session was gone after one.
    """
    deadline = time.monotonic() + _EMPTY_SECONDS
    while fetch(connection, "end_sessions", {"database": name}) and time.monotonic() < deadline:
        time.sleep(0.002)


@contextmanager
def migrated_database(server: str, name: str) -> Iterator[str]:
    with database(server, name) as url:
        with psycopg.connect(url) as connection:
            migrate.migrate(connection)
        yield url


def advance(connection: psycopg.Connection[Any], delta: timedelta) -> None:
    fetch(connection, "advance", {"delta": delta})
