"""Logging in child processes that a step has forked. (Their records were lost: only the worker has the socket.)"""

import os

from underway.text import encodable, shorten
from underway.wire import child_record
from underway.wire.child_record import Record

_LONGEST_NAME = 200


class ChildLog:
    """Writes to the worker's output pipe, even if the step has redirected descriptor 2."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def write(self, level: int, logger: str, message: str) -> None:
        os.write(self._pipe, _line(level, shorten(logger, _LONGEST_NAME), message))


def _line(level: int, logger: str, message: str) -> bytes:
    """The encoded record, shortened until it fits: JSON writes some characters as six."""
    most = child_record.LONGEST
    while True:
        record = Record(max(0, min(level, 100)), encodable(logger), encodable(shorten(message, most)))
        line = child_record.encode(record)
        if len(line) <= child_record.LONGEST:
            return line
        most -= most // 4
