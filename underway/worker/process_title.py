"""What `ps` shows of a worker: which task it is at, and since when."""

import ctypes
import os
import time

from underway.wire import messages

# The fields of /proc/self/stat that say where the kernel reads our command line, counted behind the name.
_ARG_START, _ARG_END = 45, 46


class Title:
    """Written where the kernel reads our command line each time that somebody asks: so it costs a copy in memory.

    Where that place is not known for sure, nothing is shown and `ps` goes on saying how we were started.
    """

    def __init__(self, slot: int) -> None:
        self._area = _command_line()
        self._who = f"underway worker {slot}: "
        self._idle, self._busy = self._padded("idle"), self._padded("busy")
        self._shown = b""

    def idle(self) -> None:
        self._show(self._idle)

    def busy(self) -> None:
        """With tasks so short that each of them is over before anybody could read its name."""
        if self._shown is not self._busy:
            self._show(self._busy)

    def task(self, task: messages.Assignment) -> None:
        since = time.strftime("%H:%M:%S")
        self._show(self._padded(f"{task.job} {task.step}, run {task.run} since {since}"))

    def _padded(self, text: str) -> bytes:
        """As long as the area, its last byte a zero: without that the kernel would read on into the environment."""
        room = max(len(self._area) - 1, 0)
        return (self._who + text).encode(errors="replace")[:room].ljust(len(self._area), b"\0")

    def _show(self, title: bytes) -> None:
        self._area[:] = self._shown = title  # refused by Python if it were longer or shorter


def _command_line() -> memoryview:
    """Our memory from the first byte of the command line to its last; empty where it cannot be found."""
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
        with open("/proc/self/cmdline", "rb") as file:
            line = file.read()
        # Read by way of the kernel, which says no where a wrong address would end us.
        with open("/proc/self/mem", "rb", buffering=0) as memory:
            if not line or os.pread(memory.fileno(), end - start, start) != line:
                return memoryview(bytearray())
    except (OSError, ValueError, IndexError, OverflowError):
        return memoryview(bytearray())
    return memoryview((ctypes.c_char * len(line)).from_address(start)).cast("B")
