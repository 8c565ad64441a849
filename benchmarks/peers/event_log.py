"""The events that tasks record: what happened, when, and in which process.

Each event is one small append to one file. So it costs the same in every queue, concurrent writers do not interleave,
and an event survives the kill -9 of its process. Tasks write the file directly: the figures do not depend on what a
queue reports about its tasks.
"""

import os
import struct
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

VARIABLE = "UNDERWAY_PEERS_EVENT_LOG"
CALLED, STARTED, ENDED = b"c", b"s", b"e"

_RECORD = struct.Struct("=cqqi")
_NANOSECONDS = 1e9


class Event(NamedTuple):
    kind: bytes
    value: int
    at: float  # seconds since the epoch, by the clock that Postgres on the same machine uses too
    pid: int


def record(kind: bytes, value: int) -> None:
    os.write(_file(), _RECORD.pack(kind, value, time.time_ns(), os.getpid()))


@cache
def _file() -> int:
    return os.open(os.environ[VARIABLE], os.O_WRONLY | os.O_APPEND)


class EventLog:
    """The reader of the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def clear(self) -> None:
        """Remove all events. Only while no task runs."""
        os.truncate(self.path, 0)

    def __len__(self) -> int:
        """The number of events, from one stat, so that polling does not slow down the workers."""
        return self.path.stat().st_size // _RECORD.size

    def events(self, kind: bytes) -> list[Event]:
        written = self.path.read_bytes()
        whole = len(written) // _RECORD.size * _RECORD.size
        records = _RECORD.iter_unpack(written[:whole])
        return [Event(k, value, at / _NANOSECONDS, pid) for k, value, at, pid in records if k == kind]
