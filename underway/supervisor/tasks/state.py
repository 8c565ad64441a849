"""The states of a task in a supervisor, and the events that lead from one to the next.

    claimed -> WAITING -> HANDED -> STARTED -> ENDED -> COMMITTED
                  ^          |          |
                  +-- requeue (revoked, skipped, or its worker died before the start)

A task whose worker died after the start is UNJUDGED until its verdict. LOST, COMMITTED and ABANDONED are final: the
supervisor no longer holds the task.
"""

from enum import IntEnum, StrEnum


class TaskState(IntEnum):
    WAITING = 1  # in the dispatch
    HANDED = 2  # sent to a worker, which has not reported that it started
    REVOKING = 3  # sent to a worker, and then revoked: the worker may still start it
    STARTED = 4
    UNJUDGED = 5  # its worker died; the verdict is still open
    ENDED = 6  # on its way to Postgres: from here on the commit decides whether the run is still ours
    COMMITTED = 7
    LOST = 8  # another supervisor owns the run; a worker may still hold the task until it is killed or skips it
    ABANDONED = 9  # the attempt cannot be recorded


class Event(StrEnum):
    HAND = "hand"
    REVOKE = "revoke"
    START = "start"
    REQUEUE = "requeue"
    DIE = "die"
    END = "end"
    COMMIT = "commit"
    LOSE = "lose"
    ABANDON = "abandon"


_W, _H, _R, _S, _U, _E = (TaskState(number) for number in range(1, 7))
_LOST = TaskState.LOST

# What is not in this table is illegal. A worker may report about a task after the task was lost; it stays lost.
TRANSITIONS: dict[Event, dict[TaskState, TaskState]] = {
    Event.HAND: {_W: _H},
    Event.REVOKE: {_H: _R},
    Event.START: {_H: _S, _R: _S, _S: _S, _LOST: _LOST},
    # A started task can still be skipped: the worker announces a task before it reads the Revoke.
    Event.REQUEUE: {_H: _W, _R: _W, _S: _W, _LOST: _LOST},
    Event.DIE: {_S: _U, _LOST: _LOST},
    # From WAITING: released unstarted. From ENDED: another row is submitted, because the first could not be stored.
    Event.END: {_W: _E, _H: _E, _R: _E, _S: _E, _U: _E, _E: _E},
    Event.COMMIT: {_E: TaskState.COMMITTED},
    Event.LOSE: {_W: _LOST, _H: _LOST, _R: _LOST, _S: _LOST, _U: _LOST, _E: _LOST},
    Event.ABANDON: {_E: TaskState.ABANDONED},
}


class IllegalTransition(Exception):
    """A bug in the supervisor: this event cannot happen to a task in this state."""
