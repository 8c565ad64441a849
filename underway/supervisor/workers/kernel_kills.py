"""Tells the kernel's kills for memory from other SIGKILLs, by the counter of the supervisor's memory cgroup.

Workers are in the cgroup of their supervisor, on which a container's memory limit is set. Without such a cgroup, the
cause of a SIGKILL is unknown.
"""

import re
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
# The counter grows at once, but a process with much memory takes a while to die.
_POLL_SECONDS = 5.0


class KernelKills:
    """A kill that was counted in the last five to ten seconds explains the death of one worker."""

    def __init__(self) -> None:
        self._counter = _counter()
        self._explained = self._last = self._counted()
        self._poll_at = 0.0

    def poll(self, now: float) -> None:
        """Forget earlier kills: they were of processes that are not workers."""
        if now >= self._poll_at:
            self._poll_at = now + _POLL_SECONDS
            self._explained = max(self._explained, self._last)
            self._last = self._counted()

    def explains_one(self) -> bool:
        """Whether a worker that has just died of SIGKILL was killed by the kernel for memory."""
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
    """memory.events in cgroup v2, memory.oom_control in v1. In a container our cgroup may be mounted as the root."""
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
