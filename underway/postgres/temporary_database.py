"""Databases that come and go with a test, and time that passes in them."""

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
    """The URL of a new database in place of any of that name; dropped at the end, whoever is connected to it."""
    name_of_it = sql.Identifier(name)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(name_of_it))
        source = _copied(connection, template) if template else sql.SQL("")
        connection.execute(sql.SQL("create database {} {}").format(name_of_it, source))
        try:
            yield make_conninfo(server, dbname=name)
        finally:
            _empty(connection, name)
            connection.execute(sql.SQL("drop database if exists {} with (force)").format(name_of_it))


def _copied(connection: psycopg.Connection[Any], template: str) -> sql.Composable:
    """File by file where nothing is synced: half the work of page by page, but its checkpoints wait for the disk."""
    source = sql.SQL("template {}").format(sql.Identifier(template))
    synced = connection.execute("show fsync").fetchone() == ("on",)
    if synced or connection.info.server_version < 150000:  # which knows no other way
        return source
    return source + sql.SQL(" strategy file_copy")


def _empty(connection: psycopg.Connection[Any], name: str) -> None:
    """Wait until nobody is connected to it.

    Postgres itself looks for that ten times a second only: of the 70 ms that a drop took, 60 were spent asleep, beside
    a session that had been closed just now and was gone in one.
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
