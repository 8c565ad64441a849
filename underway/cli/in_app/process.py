"""Commands that need the user's app go on in a process that may import it: this one becomes that."""

import os
import sys
from typing import NoReturn

# The database that was named by hand. Not an argument: those can be read by everybody on this host.
NAMED_DATABASE = "UNDERWAY_NAMED_DATABASE"


def go_on_in(module: str, *arguments: str, database: str | None) -> NoReturn:
    """By exec: terminal, signals and exit code are its own, and what user code prints, starts or breaks is not ours."""
    environment = os.environ if database is None else {**os.environ, NAMED_DATABASE: database}
    os.execve(sys.executable, [sys.executable, "-P", "-m", module, *arguments], environment)  # noqa: S606 - no shell
