"""The work, the same in every queue."""

import time

from benchmarks import work
from benchmarks.peers import tape

# Long enough to be found in progress by a kill, short enough that a hundred are done in seconds.
_HOLD_SECONDS = 0.1


def nothing(value: int) -> None:
    tape.mark(tape.STARTED, value)
    work.nothing(value)


def burn(milliseconds: int) -> None:
    tape.mark(tape.STARTED, milliseconds)
    work.burn(milliseconds)
    tape.mark(tape.ENDED, milliseconds)


def hold(value: int) -> None:
    tape.mark(tape.STARTED, value)
    time.sleep(_HOLD_SECONDS)
    tape.mark(tape.ENDED, value)


TASKS = {task.__name__: task for task in (nothing, burn, hold)}


def perform(task: str, value: int) -> None:
    TASKS[task](value)
