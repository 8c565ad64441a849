"""Writes the log from a thread, so that a slow or stuck reader cannot hold up the supervisor.

A full pipe blocks its writer until it is read. (With `2>&1 | less` left open, leases were no longer renewed, and all
running tasks were taken back.)
"""

import contextlib
import logging
import os
import select
from queue import SimpleQueue
from threading import Thread

_MOST_WAITING = 4 * 1024 * 1024
# After a dropped line, all lines are dropped until half of the waiting bytes have been read: one gap, not many.
_ENOUGH_READ = _MOST_WAITING // 2
_END = b""  # a line is never empty
_AT_ONCE = 64 * 1024
_LEAVING_SECONDS = 1.0


class LogWriter(logging.Handler):
    """Keeps the order of lines, and marks gaps. `descriptor` may be shared, so its flags are not changed."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._waiting: SimpleQueue[bytes] = SimpleQueue()
        # Each counter is written by one thread only, so no lock is needed. The logging threads count bytes taken and
        # lines refused; the writing thread counts bytes processed and lines that could not be written.
        self._taken = self._refused = 0
        self._done = self._failed = 0
        # A daemon, because a thread that is stuck in its write must not keep the process from ending.
        self._thread = Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._take(self._line(record))
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Called when the process ends. Leaves a reader a second to catch up."""
        if self._refused:
            self._put(self._missing(self._refused, "the log was not read"))
        self._waiting.put(_END)
        self._thread.join(_LEAVING_SECONDS)
        super().close()

    def _take(self, line: bytes) -> None:
        room = (_ENOUGH_READ if self._refused else _MOST_WAITING) - (self._taken - self._done)
        if len(line) > room:
            self._refused += line.count(b"\n")
            return
        if self._refused:
            self._put(self._missing(self._refused, "the log was not read"))
            self._refused = 0
        self._put(line)

    def _put(self, line: bytes) -> None:
        self._taken += len(line)
        self._waiting.put(line)

    def _write_all(self) -> None:
        line = None
        while line != _END:
            text = line = self._waiting.get()
            while line != _END and len(text) < _AT_ONCE and not self._waiting.empty():
                line = self._waiting.get()
                text += line
            self._write(text)
            self._done += len(text)

    def _write(self, text: bytes) -> None:
        """If the disk is full or the reader is gone, count the lines, and report them when writing works again."""
        if self._failed and not self._unwritten(self._missing(self._failed, "they could not be written")):
            self._failed = 0
        self._failed += self._unwritten(text).count(b"\n")

    def _unwritten(self, text: bytes) -> bytes:
        """Write the text. Returns what could not be written."""
        with contextlib.suppress(OSError):
            while text:
                try:
                    text = text[os.write(self._descriptor, text) :]
                except BlockingIOError:  # another process that shares the descriptor has made it non-blocking
                    select.select([], [self._descriptor], [])
        return text

    def _line(self, record: logging.LogRecord) -> bytes:
        return (self.format(record) + "\n").encode(errors="backslashreplace")

    def _missing(self, lines: int, why: str) -> bytes:
        message = f"{lines:,} log {'line' if lines == 1 else 'lines'} dropped: {why}"
        return self._line(logging.LogRecord("underway.supervisor", logging.WARNING, "", 0, message, None, None))
