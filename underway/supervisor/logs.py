"""Log lines of the supervisor, and the output of its workers among them."""

import asyncio
import logging
import os
import select
import stat
import sys
import time
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from underway.supervisor.worker_process import WorkerProcess

log = logging.getLogger("underway.worker")

# So long the log may keep a supervisor waiting, once.
_PATIENCE_MILLISECONDS = 50
_CHUNK = 64 * 1024
_TAIL = 8 * 1024
_LONGEST_LINE = 16 * 1024
# Of one chunk. A record costs as much as a kilobyte of text: of a flood of short lines, several go into one.
_MOST_RECORDS = 64
_FRESH_SECONDS = 0.25


class HumanFormatter(logging.Formatter):
    """`12:34:56 INFO  message`, what the line is about behind it as `name=value`."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = f"{clock} {record.levelname[:7]:7} {record.getMessage()}"
        about = getattr(record, "about", {})
        if about:
            text += "  " + " ".join(f"{name}={value}" for name, value in about.items())
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


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
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode(errors="replace")


class ImpatientHandler(logging.Handler):
    """Drops lines that nobody takes, and says how many when somebody does again.

    (A pipe whose reader was stopped held its supervisor at the first line too many: no lease was renewed any more, and
    no signal ended it.)
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        # What can be written at all takes so much at once without waiting; a file takes anything.
        self._at_once = sys.maxsize if stat.S_ISREG(os.fstat(descriptor).st_mode) else select.PIPE_BUF
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._dropped and self._write(f"\n{self._dropped:,} lines of this log were dropped: nobody read it\n"):
                self._dropped = 0
            self._dropped += bool(self._dropped) or not self._write(self.format(record) + "\n")
        except Exception:
            self.handleError(record)

    def _write(self, text: str) -> bool:
        data = text.encode(errors="replace")
        while data:
            if not self._poll.poll(0 if self._dropped else _PATIENCE_MILLISECONDS):
                return False
            data = data[os.write(self._descriptor, data[: self._at_once]) :]
        return True


def configure(*, json: bool, level: int) -> None:
    handler: logging.Handler
    try:
        handler = ImpatientHandler(sys.stderr.fileno())
    except (OSError, ValueError):
        handler = logging.StreamHandler(sys.stderr)  # no file of the system's
    handler.setFormatter(JSONFormatter() if json else HumanFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


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
