"""Logs a worker's output line by line, keeps its end as evidence, and logs the records that the worker sends."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from underway.supervisor.logs.output_quota import OutputQuota
from underway.text import storable
from underway.wire import child_record, messages

log = logging.getLogger("underway.worker")

_CHUNK = 64 * 1024
_TAIL = 8 * 1024
_LONGEST_LINE = 16 * 1024
# Per chunk. A record costs as much as a kilobyte of text, so a flood of short lines is combined into fewer records.
_MOST_RECORDS = 64
_FRESH_SECONDS = 0.25
# A progress bar rewrites its line ten times a second. Its state is logged at this interval, and when the line ends.
_REWRITTEN_SECONDS = 10.0
# The members of a JSON line, besides its context.
_OURS = frozenset(("time", "level", "message", "exception"))


# The context of a log line: the worker, and the task with this token; with None, the task that is running.
Context = Callable[[int | None], dict[str, Any]]


class WorkerOutput:
    """The output of one worker, and the limit of its output and log records."""

    def __init__(self, pipe: int, context: Context, limit: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._pipe = pipe
        self._context = context
        self._line = bytearray()
        self._rewritten_at = 0.0  # when this line was first rewritten or last logged; 0 if it has not been rewritten
        self._tail = bytearray()
        self.allowance = OutputQuota(limit)
        self.behind = False  # messages have arrived since the pipe was last read
        self._fresh = bytearray()  # the part of the tail that was read most recently
        self._fresh_at = 0.0

    def read(self) -> bool:
        """Read available output, at most one chunk: a flood from one worker must not delay the others."""
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
        if self.allowance.over_limit:
            self.allowance.drop(len(self._line) + len(data), data.count(b"\n"))
            self._line.clear()
        else:
            self._take_lines(self._line + data)
        return True

    def _take_lines(self, text: bytearray) -> None:
        *lines, rest = text.split(b"\n")
        if lines:
            self._rewritten_at = 0.0
        if b"\r" in text:
            lines = [_last_state(line) for line in lines]
            rest = self._kept_of_bar(rest, lines)
        if len(rest) > _LONGEST_LINE:
            lines.append(rest)
            rest = bytearray()
        self._line = rest
        together = len(lines) // _MOST_RECORDS + 1
        for first in range(0, len(lines), together):
            self._log(lines[first : first + together])

    def _kept_of_bar(self, line: bytearray, lines: list[bytearray]) -> bytearray:
        """Keep only the last state of an unfinished line that is being rewritten, and log that state periodically."""
        if b"\r" not in line:
            return line
        state = _last_state(line)
        if not self._rewritten_at:
            self._rewritten_at = self._fresh_at
        elif state and self._fresh_at - self._rewritten_at > _REWRITTEN_SECONDS:
            self._rewritten_at = self._fresh_at
            lines.append(state)
            return bytearray()
        return state + b"\r" if line.rstrip(b" \t").endswith(b"\r") else line[line.rfind(b"\r") + 1 :]

    def read_rest(self) -> None:
        """After the worker's death, read what is left in the pipe."""
        for _ in range(16):
            if not self.read():
                break
        self._end_attempt()
        self._loop.remove_reader(self._pipe)
        os.close(self._pipe)

    def read_to_end_of_task(self) -> None:
        """Read the output of a task that has ended. It is in the pipe, or was read when an earlier task ended."""
        self._read_what_came_first()
        self._end_attempt()

    def _read_what_came_first(self) -> None:
        """Read what was printed before the latest messages were sent. Otherwise it is logged after them."""
        if self.behind:
            self.behind = False
            self.read()

    def forget(self) -> None:
        """A new task starts: earlier output is not evidence for it and does not count against its limit.

        Very recent output is kept, because the traceback of a task that crashes immediately is often read before the
        message that it has started.
        """
        if self._tail:
            self._tail = self._what_is_fresh()
        if self.allowance.used:
            self._renew_allowance()

    def _end_attempt(self) -> None:
        if self._line:
            self._log([_last_state(self._line)])
            self._line.clear()
        self._rewritten_at = 0.0
        if self.allowance.used:
            self._renew_allowance()

    def _renew_allowance(self) -> None:
        if said := self.allowance.renew():
            log.warning("%s", said, extra={"about": self._context(None)})

    def _what_is_fresh(self) -> bytearray:
        return self._fresh if time.monotonic() - self._fresh_at < _FRESH_SECONDS else bytearray()

    def evidence(self) -> str:
        """The last 8 KB of output, without characters that Postgres cannot store and without children's log records."""
        lines = [child_record.printed(line) for line in self._tail.split(b"\n")]
        text = b"\n".join(_last_state(bytearray(line)) for line in lines if line is not None)
        return storable(text.decode(errors="replace")).strip()

    def log_record(self, record: messages.Log) -> None:
        """Log a record of user code, perhaps from the import of the app."""
        self._read_what_came_first()
        if not log.isEnabledFor(record.level):
            return
        message = record.payload.decode(errors="replace")
        if self.allowance.take(_size(record), 1 + message.count("\n"), record.level):
            said = {**self._context(record.token), "logger": record.logger}
            said |= {_unless_ours(name, said): value for name, value in record.extra.items()}
            log.log(record.level, "%s", message, extra={"about": said, "exception": record.exception})

    def _log(self, lines: list[bytearray]) -> None:
        if not any(child_record.MARK in line for line in lines):
            self._log_output(lines)
            return
        for line in lines:
            if (found := child_record.find(bytes(line))) is None:
                self._log_output([line])
                continue
            before, record = found
            if before:
                self._log_output([bytearray(before)])
            if log.isEnabledFor(record.level) and self.allowance.take(len(record.message), 1, record.level):
                said = {**self._context(None), "logger": record.logger}
                log.log(record.level, "%s", record.message, extra={"about": said})

    def _log_output(self, lines: list[bytearray]) -> None:
        if not log.isEnabledFor(logging.INFO):
            return
        text = b"\n".join(lines)
        if self.allowance.take(len(text), len(lines)):
            log.info("%s", text.decode(errors="replace"), extra={"about": self._context(None)})


def _unless_ours(name: str, said: Mapping[str, object]) -> str:
    """The name of an extra, prefixed if it would collide with a member that underway writes itself."""
    return f"extra_{name}" if name in said or name in _OURS else name


def _size(record: messages.Log) -> int:
    extra = sum(len(name) + len(str(value)) for name, value in record.extra.items())
    return len(record.payload) + len(record.exception or "") + len(record.logger) + extra


def _last_state(line: bytearray) -> bytearray:
    """The text that a terminal shows for a line: after a CR the following text overwrites the line."""
    if b"\r" not in line:
        return line
    shown = line.rstrip(b"\r \t")
    return shown[shown.rfind(b"\r") + 1 :]
