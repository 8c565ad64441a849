"""Which database a command asks, and errors said to people."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import psycopg

from underway.cli.hide_password import hide_password
from underway.client.database import Database
from underway.errors import UnderwayError
from underway.postgres import client_queries, migrate
from underway.printable import printable

Connection = psycopg.Connection[Any]


def _hidden(_context: click.Context, _option: click.Parameter, database: str | None) -> str | None:
    hide_password(database)
    return database


database_option = click.option("--database", metavar="URL", callback=_hidden, help="A connection string, or embedded:")


class Commands(click.Group):
    """A group of commands whose errors are a message on stderr and exit code 1, not a traceback."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (UnderwayError, psycopg.Error) as error:
            raise click.ClickException(printable(str(error).strip())) from error


@contextmanager
def connect(database: str | None) -> Iterator[Connection]:
    """A connection to the database that is meant, whose schema fits. Each statement is a transaction of its own."""
    with psycopg.connect(Database(database).conninfo(), autocommit=True) as connection:
        migrate.check(client_queries.applied_migrations(connection))
        yield connection
