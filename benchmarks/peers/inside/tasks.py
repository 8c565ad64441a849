"""The tasks, the same in every queue."""

import time

from benchmarks import work
from benchmarks.peers import event_log

# Long enough that a kill finds some in progress, short enough that a hundred take only seconds.
_HOLD_SECONDS = 0.1


def nothing(value: int) -> None:
    event_log.record(event_log.STARTED, value)
    work.nothing(value)


def burn(milliseconds: int) -> None:
    event_log.record(event_log.STARTED, milliseconds)
    work.burn(milliseconds)
    event_log.record(event_log.ENDED, milliseconds)


def hold(value: int) -> None:
    event_log.record(event_log.STARTED, value)
    time.sleep(_HOLD_SECONDS)
    event_log.record(event_log.ENDED, value)


TASKS = {task.__name__: task for task in (nothing, burn, hold)}


def perform(task: str, value: int) -> None:
    TASKS[task](value)
