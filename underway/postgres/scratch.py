"""Databases that come and go with a test, and time that passes in them."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from underway.postgres import migrate
from underway.postgres.asking import fetch


@contextmanager
def database(server: str, name: str, *, template: str | None = None) -> Iterator[str]:
    """The URL of a new database in place of any of that name; dropped at the end, whoever is connected to it."""
    name_of_it = sql.Identifier(name)
    source = sql.SQL("template {}").format(sql.Identifier(template)) if template else sql.SQL("")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(name_of_it))
        connection.execute(sql.SQL("create database {} {}").format(name_of_it, source))
        try:
            yield make_conninfo(server, dbname=name)
        finally:
            connection.execute(sql.SQL("drop database if exists {} with (force)").format(name_of_it))


@contextmanager
def migrated_database(server: str, name: str) -> Iterator[str]:
    with database(server, name) as url:
        with psycopg.connect(url) as connection:
            migrate.migrate(connection)
        yield url


def advance(connection: psycopg.Connection[Any], delta: timedelta) -> None:
    fetch(connection, "advance", {"delta": delta})
