"""Keeps a password that was typed on the command line out of the list of processes."""

import contextlib
import os

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from underway.linux import command_line_area


def hide_password(database: str | None) -> None:
    """Overwrite a connection string that holds a password where everybody on this host can read it (ps, /proc).

    It was there until now, since before we began; only the environment keeps it away from the start. Does nothing
    where there is no /proc.
    """
    if database is not None and _has_password(database):
        with contextlib.suppress(OSError, ValueError):
            _overwrite(os.fsencode(database))


def _has_password(database: str) -> bool:
    try:
        return bool(conninfo_to_dict(database).get("password"))
    except ProgrammingError:  # it may hold one all the same
        return database != "embedded:"


def _overwrite(secret: bytes) -> None:
    start, end = command_line_area()
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(start)
        arguments = memory.read(end - start)
        memory.seek(start)
        memory.write(arguments.replace(secret, b"*" * len(secret)))
