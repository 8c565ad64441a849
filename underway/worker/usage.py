"""What an attempt cost: wall-clock and CPU seconds, and the peak of its memory."""

import contextlib
import os
import resource
import time

# The kernel keeps the peak of the whole process; reading and resetting it takes longer than a short task.
_WORTH_A_LOOK = 0.01


class Meter:
    """Peak memory is this process' own; the supervisor adds what it samples of its children."""

    def __init__(self) -> None:
        self._peak_rss = 0
        self._stale = True
        self._cpu = _cpu_seconds()

    def start(self) -> None:
        if self._stale:
            _reset_peak()
            self._stale = False
        self._started = time.perf_counter()

    def stop(self) -> tuple[float, float, int]:
        """Seconds, CPU seconds (with those of children that were waited for), peak resident bytes.

        The CPU seconds are those since the last task: reading them twice a task would be a tenth of a short one.
        """
        seconds = time.perf_counter() - self._started
        if seconds > _WORTH_A_LOOK or not self._peak_rss:
            self._peak_rss = _read_peak()
            self._stale = True
        before, self._cpu = self._cpu, _cpu_seconds()
        return seconds, self._cpu - before, self._peak_rss


def _cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


# The files are opened anew each time, since a step may have closed whatever was open, and by hand, since the file
# objects of Python take twice as long.


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
