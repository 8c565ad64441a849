"""Keeps a password that was typed on the command line out of the list of processes."""

import contextlib
import os

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

# The fields of /proc/self/stat that say where the kernel reads our command line, counted behind the name.
_ARG_START, _ARG_END = 45, 46


def hide_password(database: str | None) -> None:
    """Overwrite a connection string that holds a password where everybody on this host can read it (ps, /proc).

    It was there until now, since before we began; only the environment keeps it away from the start. Does nothing
    where there is no /proc.
    """
    if database is not None and _has_password(database):
        with contextlib.suppress(OSError):
            _overwrite(os.fsencode(database))


def _has_password(database: str) -> bool:
    try:
        return bool(conninfo_to_dict(database).get("password"))
    except ProgrammingError:  # it may hold one all the same
        return database != "embedded:"


def _overwrite(secret: bytes) -> None:
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(start)
        arguments = memory.read(end - start)
        memory.seek(start)
        memory.write(arguments.replace(secret, b"*" * len(secret)))
