"""The app that a command names, in the process that imports it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from underway.app import Underway
from underway.cli.in_app.process import NAMED_DATABASE
from underway.definition.loading import load
from underway.errors import UnderwayError
from underway.printable import printable


@contextmanager
def loaded(app_name: str) -> Iterator[Underway]:
    """The app, and meanwhile errors of ours are a message on stderr and exit code 1, not a traceback."""
    database = os.environ.pop(NAMED_DATABASE, None)
    try:
        app = load(app_name)
        if not isinstance(app, Underway):
            sys.exit(f"Error: {app_name} is a {type(app).__name__}, not an Underway app")
        if database is not None:
            app.database.named = database  # it wins over what the app says
        yield app
    except (UnderwayError, psycopg.Error) as error:
        sys.exit(f"Error: {printable(str(error).strip())}")
