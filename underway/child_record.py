"""Log records of a process that a step has forked: each is a line among the output of its worker.

The socket is the worker's own, so a child has only the pipe that it inherits. A line is bounded so that the kernel
writes it whole, however many children write at once.
"""

from typing import Any, NamedTuple

import orjson

# No text contains it by chance. A step that prints it forges a record of its own run, which it could log as well.
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
    """The record in a line of output, and what was printed before it without an end of line."""
    before, mark, written = line.partition(MARK)
    record = _decode(written) if mark else None
    return None if record is None else (before, record)


def _decode(written: bytes) -> Record | None:
    try:
        fields: Any = orjson.loads(written)
    except ValueError:
        return None
    match fields:
        case [int(level), str(logger), str(message)] if 0 <= level <= _HIGHEST_LEVEL:
            return Record(level, logger, message)
    return None
