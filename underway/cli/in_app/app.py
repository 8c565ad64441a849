"""Loads the app that a command names."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from underway.app import Underway
from underway.cli.errors import EXPECTED_ERRORS, error_message
from underway.cli.in_app.process import DATABASE_OVERRIDE
from underway.definition.app_import import load


@contextmanager
def loaded_app(name: str) -> Iterator[Underway]:
    """Load an app. An expected error, here or in the block, ends the process with a message and exit code 1."""
    database = os.environ.pop(DATABASE_OVERRIDE, None)
    try:
        app = load(name)
        if not isinstance(app, Underway):
            sys.exit(f"Error: {name} is a {type(app).__name__}, not an Underway app")
        if database is not None:
            app.database.named = database  # --database overrides the app's own database
        yield app
    except EXPECTED_ERRORS as error:
        sys.exit(f"Error: {error_message(error)}")
