"""Writes the log from a thread: whoever reads it, or no longer does, cannot hold up the supervisor.

A pipe that nobody empties blocks its writer for ever. (With `2>&1 | less` left open no lease was renewed any more, and
all that ran was taken back.)
"""

import contextlib
import logging
import os
import select
from queue import SimpleQueue
from threading import Thread

_MOST_WAITING = 4 * 1024 * 1024
# While lines are dropped, none is taken until so much has been read: not one here and one there.
_ENOUGH_READ = _MOST_WAITING // 2
_END = b""  # as no line is
_AT_ONCE = 64 * 1024
_LEAVING_SECONDS = 1.0


class LogWriter(logging.Handler):
    """Keeps the order of lines, and says where some are missing. `descriptor` may be shared, and is left as it is."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._waiting: SimpleQueue[bytes] = SimpleQueue()
        # Each is written by one side only, so that neither waits for a lock: bytes taken, lines refused by whoever
        # logs; bytes done with, lines that could not be written by the thread.
        self._taken = self._refused = 0
        self._done = self._failed = 0
        # A daemon: one that is stuck in its write must not keep the process from ending.
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
            self._put(self._missing(self._refused, "nobody reads them"))
        self._waiting.put(_END)
        self._thread.join(_LEAVING_SECONDS)
        super().close()

    def _take(self, line: bytes) -> None:
        room = (_ENOUGH_READ if self._refused else _MOST_WAITING) - (self._taken - self._done)
        if len(line) > room:
            self._refused += line.count(b"\n")
            return
        if self._refused:
            self._put(self._missing(self._refused, "nobody reads them"))
            self._refused = 0
        self._put(line)

    def _put(self, line: bytes) -> None:
        self._taken += len(line)
        self._waiting.put(line)

    def _write_all(self) -> None:
        line = None
        while line != _END:
            text = line = self._waiting.get()
            while line != _END and len(text) < _AT_ONCE and not self._waiting.empty():  # nobody else takes from it
                line = self._waiting.get()
                text += line
            self._write(text)
            self._done += len(text)

    def _write(self, text: bytes) -> None:
        """The disk may be full, the reader or the terminal gone: then there is nobody to tell, until it works again."""
        if self._failed and not self._unwritten(self._missing(self._failed, "they could not be written")):
            self._failed = 0
        self._failed += self._unwritten(text).count(b"\n")

    def _unwritten(self, text: bytes) -> bytes:
        """Write it; what could not be written."""
        with contextlib.suppress(OSError):
            while text:
                try:
                    text = text[os.write(self._descriptor, text) :]
                except BlockingIOError:  # somebody else has made it so, for all who share it
                    select.select([], [self._descriptor], [])
        return text

    def _line(self, record: logging.LogRecord) -> bytes:
        return (self.format(record) + "\n").encode(errors="backslashreplace")

    def _missing(self, lines: int, why: str) -> bytes:
        message = f"{lines:,} log {'line' if lines == 1 else 'lines'} dropped: {why}"
        return self._line(logging.LogRecord("underway.supervisor", logging.WARNING, "", 0, message, None, None))
