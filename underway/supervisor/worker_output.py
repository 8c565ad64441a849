"""What a worker prints, logged line by line and the last of it kept as evidence; and the records that it logs."""

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from underway import child_record, wire
from underway.supervisor.allowance import Allowance

if TYPE_CHECKING:
    from underway.supervisor.worker_process import WorkerProcess

log = logging.getLogger("underway.worker")

_CHUNK = 64 * 1024
_TAIL = 8 * 1024
_LONGEST_LINE = 16 * 1024
# Of one chunk. A record costs as much as a kilobyte of text: of a flood of short lines, several go into one.
_MOST_RECORDS = 64
_FRESH_SECONDS = 0.25
# A progress bar rewrites its line ten times a second: its state is logged so often, and when the line ends.
_REWRITTEN_SECONDS = 10.0
# Members of a line in JSON, besides what it is about.
_OURS = frozenset(("time", "level", "message", "exception"))


class WorkerOutput:
    """What a worker prints, and how much of what it prints and logs is allowed."""

    def __init__(self, pipe: int, worker: "WorkerProcess", limit: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._pipe = pipe
        self._worker = worker
        self._line = bytearray()
        self._rewritten_at = 0.0  # when a state of this line was first seen or last logged; 0: it has been no bar
        self._tail = bytearray()
        self.allowance = Allowance(limit)
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
        if self.allowance.spent:
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
        """Of an unfinished line that has been rewritten: its last state, which is now and then logged too."""
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
        """At the worker's death: the little that is left in the pipe."""
        for _ in range(16):
            if not self.read():
                break
        self._end_attempt()
        self._loop.remove_reader(self._pipe)
        os.close(self._pipe)

    def read_to_end_of_task(self) -> None:
        """A task has ended: what it has printed is in the pipe already, or was read with the end of one before it."""
        if self.behind:
            self.behind = False
            self.read()
        self._end_attempt()

    def forget(self) -> None:
        """A new task begins: what was printed before is no evidence against it, and does not count for it.

        What came just before the news may be: the traceback of a task that crashed at once is often read before we
        hear that it had started.
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
            log.warning("%s", said, extra={"about": about(self._worker)})

    def _what_is_fresh(self) -> bytearray:
        return self._fresh if time.monotonic() - self._fresh_at < _FRESH_SECONDS else bytearray()

    def evidence(self) -> str:
        """The last 8 KB of output, without what Postgres could not store."""
        text = (
            b"\n".join(map(_last_state, self._tail.split(b"\n")))
            .replace(child_record.MARK, b"")
            .decode(errors="replace")
        )
        return text.replace("\0", "\N{REPLACEMENT CHARACTER}").strip()

    def log_record(self, record: wire.Log) -> None:
        """What the user's code logs, which may be at its import."""
        if not log.isEnabledFor(record.level):
            return
        message = record.payload.decode(errors="replace")
        if self.allowance.take(_size(record), 1 + message.count("\n"), record.level):
            task = self._worker.tasks.get(record.token)
            said = {"worker": self._worker.slot, **(task.about if task else {}), "logger": record.logger}
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
                said = {**about(self._worker), "logger": record.logger}
                log.log(record.level, "%s", record.message, extra={"about": said})

    def _log_output(self, lines: list[bytearray]) -> None:
        if not log.isEnabledFor(logging.INFO):
            return
        text = b"\n".join(lines)
        if self.allowance.take(len(text), len(lines)):
            log.info("%s", text.decode(errors="replace"), extra={"about": about(self._worker)})


def about(worker: "WorkerProcess") -> dict[str, Any]:
    """Which worker, and which attempt it is at."""
    task = worker.current
    return {"worker": worker.slot, **(task.about if task is not None else {})}


def _unless_ours(name: str, said: Mapping[str, object]) -> str:
    """No extra may pass for what we say ourselves of the line."""
    return f"extra_{name}" if name in said or name in _OURS else name


def _size(record: wire.Log) -> int:
    extra = sum(len(name) + len(str(value)) for name, value in record.extra.items())
    return len(record.payload) + len(record.exception or "") + len(record.logger) + extra


def _last_state(line: bytearray) -> bytearray:
    """What a terminal still shows of a line: CR goes back to its beginning, and what follows is written over it."""
    if b"\r" not in line:
        return line
    shown = line.rstrip(b"\r \t")
    return shown[shown.rfind(b"\r") + 1 :]
