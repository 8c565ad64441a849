"""Measures the memory of each worker and its descendants."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable

import psutil

from underway.guardian import script

SAMPLE_SECONDS = 0.25
# Finding a worker's descendants may take a pass over the whole process table, milliseconds on a busy host. So it is
# done less often than known processes are measured, and uses at most this share of a core.
_SEARCH_SECONDS = 1.0
_SEARCH_SHARE = 0.005
# The share of a core for samples. (Those of 3,000 processes, which one step had started, took a sixth of a core.)
_SAMPLE_SHARE = 0.03


class Memory:
    """Resident bytes of processes with their descendants. Shared pages count for each process."""

    def __init__(self) -> None:
        self.pause = SAMPLE_SECONDS  # until the next sample should be taken
        self._search_at = 0.0
        self._below: dict[int, list[psutil.Process]] = {}

    def sample(self, pids: Iterable[int]) -> dict[int, int]:
        """Bytes by process ID. Descendants that were started less than a second ago may be missing."""
        pids = list(pids)
        if not pids:
            return {}
        now = time.monotonic()
        if now >= self._search_at or any(pid not in self._below for pid in pids):
            self._below = _search_below(pids)
            took = time.monotonic() - now
            self._search_at = now + max(_SEARCH_SECONDS, took / _SEARCH_SHARE)
        begun = time.monotonic()
        sizes = {pid: sum(_rss(process) for process in self._below[pid]) for pid in pids}
        self.pause = max(SAMPLE_SECONDS, (time.monotonic() - begun) / _SAMPLE_SHARE)
        return sizes


def _search_below(pids: list[int]) -> dict[int, list[psutil.Process]]:
    listed = os.path.exists(f"/proc/self/task/{os.getpid()}/children")
    children_of = script.children_listed if listed else _scan()
    below = {}
    for pid in pids:
        found = [pid]
        for ancestor in found:  # grows as it is read
            found += children_of(ancestor)
        below[pid] = [process for each in found if (process := _process(each)) is not None]
    return below


def _scan() -> Callable[[int], Iterable[int]]:
    """For kernels without the list of children in /proc."""
    children: dict[int, list[int]] = {}
    for pid, parent in script.parents().items():
        children.setdefault(parent, []).append(pid)
    return lambda pid: children.get(pid, ())


def _process(pid: int) -> psutil.Process | None:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid)
    return None


def _rss(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        rss: int = process.memory_info().rss
        return rss
    return 0
