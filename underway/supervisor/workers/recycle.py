"""When a worker has done enough: after so many tasks, at an age, at a size. Its place then goes to a fresh one."""

import random
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from underway.supervisor.workers.memory import Memory
from underway.text import mebibytes

# Workers that began together must not all end together: each is due somewhere in the last fifth before the mark.
_JITTER = 0.2


@dataclass(frozen=True, slots=True)
class RecycleLimits:
    """What a worker may reach, None for as much as it likes; `age` in seconds at work, `memory` in bytes."""

    tasks: int | None = None
    age: float | None = None
    memory: int | None = None


NO_LIMITS = RecycleLimits()


class WorkerUsage:
    """How near one worker is to its limits."""

    def __init__(self, limits: RecycleLimits, rng: random.Random) -> None:
        self._limits = limits
        self._share = rng.uniform(1 - _JITTER, 1)
        self.tasks_due = sys.maxsize if limits.tasks is None else max(1, round(limits.tasks * self._share))
        self._at_work_since = time.monotonic()
        self.tasks = 0  # that have ended
        self.rss = 0  # when last weighed, with all below the worker
        self.left = False  # a step that was interrupted has left processes below it
        self.taint = ""  # the irreversible change that a step has made to the process, for the log

    def begin(self) -> None:
        """It takes its place now; until then it was the spare, and did not age."""
        if not self.tasks:
            self._at_work_since = time.monotonic()

    @property
    def tasks_left(self) -> int:
        """Before it is due; at least 1."""
        return max(1, self.tasks_due - self.tasks)

    def reached(self, now: float) -> str:
        """The limit at which it is due to be replaced, in words; "" if it is at none."""
        if self.taint:
            return self.taint
        if self.left:
            return "a step that was interrupted has left processes"
        if self.tasks >= self.tasks_due:
            return f"{self.tasks:,} tasks"
        age = now - self._at_work_since
        if self._limits.age is not None and age >= self._limits.age * self._share:
            return f"{age:,.0f} s at work"
        # A worker that is too large before its first task would be replaced for ever, without any work done.
        if self._limits.memory is not None and self.rss >= self._limits.memory * self._share and self.tasks:
            return mebibytes(self.rss)
        return ""

    @property
    def over_limit(self) -> bool:
        """It is at the full mark, and should not begin another task even if nobody can take its place yet."""
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
