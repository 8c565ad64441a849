"""Continues a command in a process that may import the user's app."""

import os
import sys
from typing import NoReturn

# Carries the value of --database. Arguments would be readable by every local user.
DATABASE_OVERRIDE = "UNDERWAY_NAMED_DATABASE"


def exec_in_app(module: str, *arguments: str, database: str | None) -> NoReturn:
    """Replace this process by `python -m module`.

    The new process keeps the terminal and receives signals itself, and its exit code is the command's. User code
    cannot affect the code of this command.
    """
    environment = os.environ if database is None else {**os.environ, DATABASE_OVERRIDE: database}
    os.execve(sys.executable, [sys.executable, "-P", "-m", module, *arguments], environment)  # noqa: S606 - no shell
