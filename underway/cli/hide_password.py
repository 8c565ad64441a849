"""Removes a password that was given on the command line from the process list."""

import contextlib
import os

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from underway.linux import command_line_area


def hide_password(database: str | None) -> None:
    """Overwrite a connection string with a password in this process's arguments, which every local user can read.

    The password was readable from the start of the process until now; only an environment variable hides it from the
    start. Without /proc this function does nothing.
    """
    if database is not None and _has_password(database):
        with contextlib.suppress(OSError, ValueError):
            _overwrite(os.fsencode(database))


def _has_password(database: str) -> bool:
    try:
        return bool(conninfo_to_dict(database).get("password"))
    except ProgrammingError:  # a malformed connection string may contain a password all the same
        return database != "embedded:"


def _overwrite(secret: bytes) -> None:
    start, end = command_line_area()
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(start)
        arguments = memory.read(end - start)
        memory.seek(start)
        memory.write(arguments.replace(secret, b"*" * len(secret)))
