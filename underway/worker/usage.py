"""What an attempt has used: wall-clock and CPU seconds, and the peak of its memory."""

import contextlib
import os
import resource
import time
from typing import NamedTuple

# The kernel keeps the peak of the whole process. Reading and resetting it takes longer than a short task.
_PEAK_SECONDS = 0.01
# In less time no child can be started, run and waited for, so the CPU time of children has not changed.
_CHILD_SECONDS = 0.0001


class Usage(NamedTuple):
    """`cpu_seconds` includes those of children that were waited for; `peak_rss` is in bytes."""

    seconds: float
    cpu_seconds: float
    peak_rss: int


class Meter:
    """The peak memory is that of this process; the supervisor adds what it samples of its children."""

    def __init__(self) -> None:
        self._peak_rss = 0
        self._peak_is_stale = True
        self._process_cpu = time.process_time()
        self._children_cpu = _children_cpu()

    def start(self) -> None:
        if self._peak_is_stale:
            _reset_peak()
            self._peak_is_stale = False
        self._started = time.perf_counter()

    def stop(self) -> Usage:
        """The CPU seconds are those since the last call: a second reading per task takes a tenth of a short task."""
        seconds = time.perf_counter() - self._started
        if seconds > _PEAK_SECONDS or not self._peak_rss:
            self._peak_rss = _read_peak()
            self._peak_is_stale = True
        before, self._process_cpu = self._process_cpu, time.process_time()
        cpu_seconds = self._process_cpu - before
        if seconds > _CHILD_SECONDS:
            before, self._children_cpu = self._children_cpu, _children_cpu()
            cpu_seconds += self._children_cpu - before
        return Usage(seconds, cpu_seconds, self._peak_rss)


def _children_cpu() -> float:
    """CPU seconds of all children that were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


# The files are opened each time, because a step may have closed any descriptor, and with os.open, because file objects
# take twice as long.


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open("/proc/self/clear_refs", os.O_WRONLY)
        try:
            os.write(descriptor, b"5")
        finally:
            os.close(descriptor)


def _read_peak() -> int:
    with contextlib.suppress(OSError, ValueError):
        descriptor = os.open("/proc/self/status", os.O_RDONLY)
        try:
            status = os.read(descriptor, 4096)
        finally:
            os.close(descriptor)
        begin = status.index(b"VmHWM:") + 6
        return int(status[begin : status.index(b"kB", begin)]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
