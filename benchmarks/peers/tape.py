"""What the tasks leave behind: who did what, and when.

One small append to one file: it costs the same in every queue, two processes cannot tear it apart, and it survives
kill -9 of whoever wrote it. That nothing lies between the task and the file is the point: no queue is asked what its
tasks did.
"""

import os
import struct
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

VARIABLE = "UNDERWAY_PEERS_TAPE"
CALLED, STARTED, ENDED = b"c", b"s", b"e"

_RECORD = struct.Struct("=cqqi")
_NANOSECONDS = 1e9


class Mark(NamedTuple):
    kind: bytes
    value: int
    at: float  # seconds since the epoch: the clock that Postgres on the same machine has, too
    pid: int


def mark(kind: bytes, value: int) -> None:
    os.write(_tape(), _RECORD.pack(kind, value, time.time_ns(), os.getpid()))


@cache
def _tape() -> int:
    return os.open(os.environ[VARIABLE], os.O_WRONLY | os.O_APPEND)


class Tape:
    """The reader's side."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def rewind(self) -> None:
        """Forget what is on it. Only while no task runs."""
        os.truncate(self.path, 0)

    def __len__(self) -> int:
        """How many marks there are: one stat, so that looking costs the measured ones nothing."""
        return self.path.stat().st_size // _RECORD.size

    def marks(self, kind: bytes) -> list[Mark]:
        written = self.path.read_bytes()
        whole = len(written) // _RECORD.size * _RECORD.size
        records = _RECORD.iter_unpack(written[:whole])
        return [Mark(k, value, at / _NANOSECONDS, pid) for k, value, at, pid in records if k == kind]
