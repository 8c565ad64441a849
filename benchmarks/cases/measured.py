"""A backlog worked off by a supervisor: its rate, and what the rate cost whom."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.shares import Shares
from benchmarks.stage import Stage, Supervisor
from underway import Job


class Backlog:
    """A sample is the rate at which all these values, enqueued at once, are worked off."""

    def __init__(
        self,
        stage: Stage,
        supervisor: Supervisor,
        job: Job[Any, Any, Any],
        values: Sequence[Any],
        *others: Supervisor,
        from_commit: bool = False,
    ) -> None:
        self._stage = stage
        self._supervisors = (supervisor, *others)
        self._job = job
        self._values = values
        self._from_commit = from_commit
        self._taken: list[dict[str, float]] = []

    def warm_up(self, runs: int) -> None:
        values = [self._values[0]] * min(runs, len(self._values))
        self._stage.drained(lambda: self._job.enqueue_many(values), len(values))

    def rate(self) -> float:
        shares: list[Shares] = []

        def enqueue() -> None:
            # Read before the transaction commits, so that COPY is in it; it is small beside the rest.
            shares.append(Shares(self._stage, *self._supervisors))
            self._job.enqueue_many(self._values)

        seconds = self._stage.drained(enqueue, len(self._values), from_commit=self._from_commit)
        self._taken.append({**shares[0].taken(), "seconds": seconds})
        return len(self._values) / seconds

    @property
    def microseconds(self) -> dict[str, float]:
        """CPU microseconds a run, by whom; the median of the rounds."""
        return {
            name: round(median(taken[name] for taken in self._taken) / len(self._values) * 1e6, 1)
            for name in self._taken[0]
        }
