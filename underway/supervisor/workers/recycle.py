"""When to replace a worker by a fresh one: after a number of tasks, at an age, or at a size."""

import random
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from underway.supervisor.workers.memory import Memory
from underway.text import mebibytes

# Workers that started together must not all be replaced together: each is due at a random point in the last fifth
# before its limit.
_JITTER = 0.2


@dataclass(frozen=True, slots=True)
class RecycleLimits:
    """None is unlimited. `age` is in seconds since the worker took its place, `memory` in bytes."""

    tasks: int | None = None
    age: float | None = None
    memory: int | None = None


NO_LIMITS = RecycleLimits()


class WorkerUsage:
    """What one worker has used of its limits."""

    def __init__(self, limits: RecycleLimits, rng: random.Random) -> None:
        self._limits = limits
        self._share = rng.uniform(1 - _JITTER, 1)
        self.tasks_due = sys.maxsize if limits.tasks is None else max(1, round(limits.tasks * self._share))
        self._active_since = time.monotonic()
        self.tasks = 0  # that have ended
        self.rss = 0  # bytes at the latest sample, with all descendants
        self.left = False  # an interrupted step has left processes below the worker
        self.taint = ""  # the irreversible change that a step has made to the process, for the log

    def begin(self) -> None:
        """The worker takes its place. As the spare, it did not age."""
        if not self.tasks:
            self._active_since = time.monotonic()

    @property
    def tasks_left(self) -> int:
        """Until the worker is due; at least 1."""
        return max(1, self.tasks_due - self.tasks)

    def reached(self, now: float) -> str:
        """Why the worker is due to be replaced; "" if it is not."""
        if self.taint:
            return self.taint
        if self.left:
            return "an interrupted step has left processes"
        if self.tasks >= self.tasks_due:
            return f"{self.tasks:,} tasks"
        age = now - self._active_since
        if self._limits.age is not None and age >= self._limits.age * self._share:
            return f"{age:,.0f} s at work"
        # Workers that are too large before their first task would be replaced forever and do no work.
        if self._limits.memory is not None and self.rss >= self._limits.memory * self._share and self.tasks:
            return mebibytes(self.rss)
        return ""

    @property
    def over_limit(self) -> bool:
        """It has fully reached a limit, and should not start another task even if there is no spare yet."""
        too_many = self._limits.tasks is not None and self.tasks >= self._limits.tasks
        too_large = self._limits.memory is not None and self.rss >= self._limits.memory and self.tasks > 0
        return too_many or too_large or self.left


class MemorySampler:
    """Measures the memory of workers, if one of the limits needs it."""

    def __init__(self, limits: RecycleLimits) -> None:
        self._needed = limits.memory is not None
        self._memory = Memory()
        self._next_at = 0.0

    def is_due(self, now: float) -> bool:
        return self._needed and now >= self._next_at

    def sample(self, usages: Mapping[int, WorkerUsage], now: float) -> None:
        """Record the memory of each worker in its usage, by process id."""
        for pid, rss in self._memory.sample(usages).items():
            usages[pid].rss = rss
        self._next_at = now + self._memory.pause
