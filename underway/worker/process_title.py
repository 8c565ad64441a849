"""The title of a worker in `ps`: the task that it runs, and since when."""

import ctypes
import os
import time

from underway.linux import command_line_area
from underway.wire.messages import Assignment


class ProcessTitle:
    """Overwrites the memory from which the kernel reads the command line when a process asks for it.

    So a new title costs one copy in memory. If the place of that memory cannot be verified, the title does not change.
    """

    def __init__(self, slot: int) -> None:
        self._area = _command_line()
        self._prefix = f"underway worker {slot}: "
        self._idle, self._busy = self._padded("idle"), self._padded("busy")
        self._shown = b""

    def show_idle(self) -> None:
        self._show(self._idle)

    def show_busy(self) -> None:
        """For tasks that are too short for their names to be read."""
        if self._shown is not self._busy:
            self._show(self._busy)

    def show_task(self, task: Assignment) -> None:
        since = time.strftime("%H:%M:%S")
        self._show(self._padded(f"{task.job} {task.step}, run {task.run} since {since}"))

    def _padded(self, text: str) -> bytes:
        """As long as the area. The last byte is a zero, or the kernel would read on into the environment."""
        room = max(len(self._area) - 1, 0)
        return (self._prefix + text).encode(errors="replace")[:room].ljust(len(self._area), b"\0")

    def _show(self, title: bytes) -> None:
        self._area[:] = self._shown = title  # Python refuses a title of another length


def _command_line() -> memoryview:
    """The memory of this process' command line; empty if it cannot be found."""
    try:
        start, end = command_line_area()
        with open("/proc/self/cmdline", "rb") as file:
            line = file.read()
        # Read through the kernel, which returns an error for a wrong address instead of a segmentation fault.
        with open("/proc/self/mem", "rb", buffering=0) as memory:
            if not line or os.pread(memory.fileno(), end - start, start) != line:
                return memoryview(bytearray())
    except (OSError, ValueError, OverflowError):
        return memoryview(bytearray())
    return memoryview((ctypes.c_char * len(line)).from_address(start)).cast("B")
