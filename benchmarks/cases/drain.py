"""Supervisors drain a backlog: the rate, and the CPU time by process."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.cpu_usage import CpuUsage
from benchmarks.testbed import Supervisor, Testbed
from underway import Job


class Drain:
    """A sample is the rate, in runs per second, at which supervisors drain these values, enqueued at once."""

    def __init__(
        self,
        testbed: Testbed,
        supervisor: Supervisor,
        job: Job[Any, Any, Any],
        values: Sequence[Any],
        *others: Supervisor,
        from_commit: bool = False,
    ) -> None:
        self._testbed = testbed
        self._supervisors = (supervisor, *others)
        self._job = job
        self._values = values
        self._from_commit = from_commit
        self._spent: list[dict[str, float]] = []

    def warm_up(self, runs: int) -> None:
        values = [self._values[0]] * min(runs, len(self._values))
        self._testbed.drain(lambda: self._job.enqueue_many(values), len(values))

    def sample(self) -> float:
        usage: list[CpuUsage] = []

        def enqueue() -> None:
            # Read before the transaction commits. So it includes COPY, which is small beside the rest.
            usage.append(CpuUsage(self._testbed, *self._supervisors))
            self._job.enqueue_many(self._values)

        seconds = self._testbed.drain(enqueue, len(self._values), from_commit=self._from_commit)
        self._spent.append({**usage[0].since_start(), "seconds": seconds})
        return len(self._values) / seconds

    @property
    def cpu_microseconds(self) -> dict[str, float]:
        """CPU microseconds per run, by process; the median of the rounds."""
        return {
            name: round(median(spent[name] for spent in self._spent) / len(self._values) * 1e6, 1)
            for name in self._spent[0]
        }
