"""Turns expected errors into messages on stderr."""

from typing import Any

import click
import psycopg

from underway.errors import UnderwayError
from underway.printable import printable

EXPECTED_ERRORS = (UnderwayError, psycopg.Error)

# How psycopg begins the message of a connection that could not be established.
_CONNECTION_FAILED = "connection failed: "


class CommandGroup(click.Group):
    """A group of commands that reports an expected error on stderr with exit code 1, without a traceback."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except EXPECTED_ERRORS as error:
            raise click.ClickException(error_message(error)) from error


def error_message(error: Exception) -> str:
    text = printable(str(error).strip())
    if isinstance(error, psycopg.OperationalError) and text.startswith(_CONNECTION_FAILED):
        return f"cannot connect to the database: {text.removeprefix(_CONNECTION_FAILED)}"
    return text
