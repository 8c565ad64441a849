"""Tells the kernel's kills for memory from other SIGKILLs: their number is kept by the memory cgroup we are in.

Workers are in the cgroup of their supervisor, which is what a container's memory limit is set on. Where there is no
such cgroup, nobody knows why a worker was killed, and nothing is said.
"""

import re
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
# A kill is counted at once, but the end of a process with much memory takes a while.
_POLL_SECONDS = 5.0


class KernelKills:
    """A kill that was counted five or ten seconds ago at most explains the death of one worker."""

    def __init__(self) -> None:
        self._counter = _counter()
        self._explained = self._last = self._counted()
        self._poll_at = 0.0

    def poll(self, now: float) -> None:
        """Forget the kills of long ago: they were of processes that no death of a worker told of."""
        if now >= self._poll_at:
            self._poll_at = now + _POLL_SECONDS
            self._explained = max(self._explained, self._last)
            self._last = self._counted()

    def explains_one(self) -> bool:
        """Whether a worker that got a SIGKILL just now got it for memory."""
        if self._counted() <= self._explained:
            return False
        self._explained += 1
        return True

    def _counted(self) -> int:
        try:
            found = None if self._counter is None else re.search(r"^oom_kill (\d+)$", self._counter.read_text(), re.M)
        except OSError:
            return 0
        return 0 if found is None else int(found[1])


def _counter() -> Path | None:
    """memory.events in cgroup v2, memory.oom_control in v1; in a container our cgroup may be mounted as the root."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    places = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        below = path.lstrip("/")
        if "memory" in controllers.split(","):
            places += [_ROOT / "memory" / below / "memory.oom_control", _ROOT / "memory" / "memory.oom_control"]
        elif not controllers:
            places += [_ROOT / below / "memory.events", _ROOT / "memory.events"]
    return next((place for place in places if place.exists()), None)
