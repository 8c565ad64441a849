"""The option --database, and the connection that a command uses."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import psycopg

from underway.cli.hide_password import hide_password
from underway.client.database import Database
from underway.postgres import client_queries, migrate

Connection = psycopg.Connection[Any]


def _hide(_context: click.Context, _option: click.Parameter, database: str | None) -> str | None:
    hide_password(database)
    return database


database_option = click.option("--database", metavar="URL", callback=_hide, help='A connection string, or "embedded:".')


@contextmanager
def connect(database: str | None) -> Iterator[Connection]:
    """An autocommit connection to the selected database, after a check that its schema fits this code."""
    with psycopg.connect(Database(database).conninfo(), autocommit=True) as connection:
        migrate.check(client_queries.applied_migrations(connection))
        yield connection
