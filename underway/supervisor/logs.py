"""Log lines of the supervisor: as people read them, or as JSON.

Messages hold text of steps and of rows. It can neither drive a terminal nor begin a line that looks like one of ours.
"""

import asyncio
import json
import logging
import os
import re
import sys
import time
from typing import TYPE_CHECKING, Any

import orjson

from underway.printable import printable, printable_json
from underway.supervisor.log_writer import LogWriter

if TYPE_CHECKING:
    from underway.supervisor.worker_process import WorkerProcess

log = logging.getLogger("underway.worker")

_CHUNK = 64 * 1024
_TAIL = 8 * 1024
_LONGEST_LINE = 16 * 1024
# Of one chunk. A record costs as much as a kilobyte of text: of a flood of short lines, several go into one.
_MOST_RECORDS = 64
_FRESH_SECONDS = 0.25
_INDENT = "\n    "
_NEEDS_NO_QUOTES = re.compile(r"""[^\s="'\\]+""")


class HumanFormatter(logging.Formatter):
    """`12:34:56 INFO  message`, what the line is about behind it as `name=value`. Further lines are indented."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = f"{clock} {record.levelname[:7]:7} {record.getMessage()}"
        about = getattr(record, "about", {})
        if about:
            text += "  " + " ".join(f"{_quoted(name)}={_quoted(value)}" for name, value in about.items())
        if exception := _exception(self, record):
            text += "\n" + exception
        return printable(text).replace("\n", _INDENT)


class JSONFormatter(logging.Formatter):
    """One JSON object a line, what the line is about as its members."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "about", {}),
        }
        if exception := _exception(self, record):
            line["exception"] = exception
        try:
            return printable_json(orjson.dumps(line, default=str).decode())
        except orjson.JSONEncodeError:  # half of a surrogate pair, from the name of a file
            return printable_json(json.dumps(line, default=str))


def _exception(formatter: logging.Formatter, record: logging.LogRecord) -> str | None:
    """Of the record itself, or as text of one that a worker has sent."""
    text: str | None = getattr(record, "exception", None)
    return formatter.formatException(record.exc_info) if record.exc_info else text


def _quoted(value: object) -> str:
    """The name of a job may hold whatever forges the rest of its line."""
    text = str(value)
    if text.isprintable() and _NEEDS_NO_QUOTES.fullmatch(text):
        return text
    return printable_json(json.dumps(text, ensure_ascii=False))


def configure(*, json: bool, level: int) -> None:
    """Log to stderr, also what this process dies of, and what Python itself would write there: past the log it might
    wait for a reader.
    """
    # Started without a stderr: else the first socket that we open would get its number, and our log.
    descriptor = os.open(os.devnull, os.O_WRONLY) if sys.stderr is None else sys.stderr.fileno()
    handler = LogWriter(descriptor)
    handler.setFormatter(JSONFormatter() if json else HumanFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    own = logging.getLogger("underway.supervisor")
    sys.excepthook = lambda *error: own.critical("the supervisor ends, by a fault of its own", exc_info=error)
    sys.unraisablehook = lambda unraisable: own.error(
        "%s: %r",
        unraisable.err_msg or "an error that nobody could be told of, in",
        unraisable.object,
        exc_info=unraisable.exc_value,
    )


def about(worker: "WorkerProcess") -> dict[str, Any]:
    """Which worker, and which attempt it is at."""
    task = worker.current
    return {"worker": worker.slot, **(task.about if task is not None else {})}


class WorkerOutput:
    """A worker's stdout and stderr: logged line by line, the last of it kept as evidence."""

    def __init__(self, pipe: int, worker: "WorkerProcess") -> None:
        self._loop = asyncio.get_running_loop()
        self._pipe = pipe
        self._worker = worker
        self._line = bytearray()
        self._tail = bytearray()
        self.behind = False  # messages have come since the pipe was read
        self._fresh = bytearray()  # of the tail, what was read just now
        self._fresh_at = 0.0

    def read(self) -> bool:
        """Take what is there, but no more than a chunk: a flood in one worker must not hold up the others."""
        try:
            data = os.read(self._pipe, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(self._pipe)
            return False
        self._fresh = (self._what_is_fresh() + data)[-_TAIL:]
        self._fresh_at = time.monotonic()
        self._tail = (self._tail + data)[-_TAIL:]
        *lines, rest = (self._line + data).split(b"\n")
        self._line = rest
        if len(self._line) > _LONGEST_LINE:
            lines.append(self._line)
            self._line = bytearray()
        together = len(lines) // _MOST_RECORDS + 1
        for first in range(0, len(lines), together):
            self._log(b"\n".join(lines[first : first + together]))
        return True

    def read_rest(self) -> None:
        """At the worker's death: the little that is left in the pipe."""
        for _ in range(16):
            if not self.read():
                break
        self._end_line()
        self._loop.remove_reader(self._pipe)
        os.close(self._pipe)

    def read_to_end_of_task(self) -> None:
        """A task has ended: what it has printed is in the pipe already, or was read with the end of one before it."""
        if self.behind:
            self.behind = False
            self.read()
        self._end_line()

    def _end_line(self) -> None:
        if self._line:
            self._log(self._line)
            self._line = bytearray()

    def forget(self) -> None:
        """A new task begins: what was printed before is no evidence against it.

        What came just before the news may be: the traceback of a task that crashed at once is often read before we
        hear that it had started.
        """
        if self._tail:
            self._tail = self._what_is_fresh()

    def _what_is_fresh(self) -> bytearray:
        return self._fresh if time.monotonic() - self._fresh_at < _FRESH_SECONDS else bytearray()

    def evidence(self) -> str:
        """The last 8 KB of output, without what Postgres could not store."""
        return self._tail.decode(errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}").strip()

    def _log(self, line: bytes | bytearray) -> None:
        if log.isEnabledFor(logging.INFO):
            log.info("%s", line.decode(errors="replace"), extra={"about": about(self._worker)})
