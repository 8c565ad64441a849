"""Log records of child processes that a step has forked: each is one line in the worker's output.

A child cannot use the worker's socket; it has only the inherited output pipe. The length of a line is limited so that
the kernel writes it atomically, however many children write at the same time.
"""

from typing import Any, NamedTuple

import orjson

# Ordinary text does not contain this. A step that prints it forges only a record of its own run.
MARK = b"\x1eunderway-log "
LONGEST = 4096  # PIPE_BUF
_HIGHEST_LEVEL = 100


class Record(NamedTuple):
    level: int
    logger: str
    message: str


def encode(record: Record) -> bytes:
    return MARK + orjson.dumps(tuple(record)) + b"\n"


def find(line: bytes) -> tuple[bytes, Record] | None:
    """The record in a line of output, and the unterminated output that precedes it."""
    before, mark, written = line.partition(MARK)
    record = _decode(written) if mark else None
    return None if record is None else (before, record)


def printed(line: bytes | bytearray) -> bytes | None:
    """The text of an output line without its log record; None if the line contains only a record."""
    before, mark, _ = bytes(line).partition(MARK)
    return before or None if mark else before


def _decode(written: bytes) -> Record | None:
    try:
        fields: Any = orjson.loads(written)
    except ValueError:
        return None
    match fields:
        case [int(level), str(logger), str(message)] if 0 <= level <= _HIGHEST_LEVEL:
            return Record(level, logger, message)
    return None
