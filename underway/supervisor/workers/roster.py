"""Which worker has which place: active, spare, or retired. Starts and kills nothing."""

import math
from collections.abc import Iterable, Iterator

from underway.definition.manifest import Lane, Step
from underway.supervisor.workers.process import WorkerProcess

_DEFAULT_LEASE = 60.0


class Roster:
    """The workers that have booted.

    `active` holds up to `size` workers that may be given tasks, in the order in which they took their places. The spare
    has booted and waits to take the place of one of them. A retired worker has been asked to exit. `lanes` is what any
    active worker can run.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.active: list[WorkerProcess] = []
        self.spare: WorkerProcess | None = None
        self.retired: list[WorkerProcess] = []
        self.lanes: dict[Lane, Step] = {}
        self.generation = 0  # how often the app has been reloaded

    def __iter__(self) -> Iterator[WorkerProcess]:
        yield from self.active
        yield from self.retired
        if self.spare is not None:
            yield self.spare

    def is_old(self, worker: WorkerProcess) -> bool:
        """Whether the app has been reloaded since this worker was started."""
        return worker.generation < self.generation

    @property
    def old_count(self) -> int:
        return sum(map(self.is_old, self.active))

    @property
    def usable_count(self) -> int:
        return sum(not worker.paused for worker in self.active)

    @property
    def fresh_spare(self) -> WorkerProcess | None:
        """The spare, if it has today's code and has run no task."""
        return None if self.spare is None or self.is_old(self.spare) or self.spare.usage.tasks else self.spare

    @property
    def claimable(self) -> dict[Lane, Step]:
        """The lanes to claim from now. During a reload, only those of the idle workers, if there are any.

        A run that no idle worker can do would wait here for a busy one, and keep the idle ones from their work.
        """
        if len({worker.generation for worker in self.active}) > 1:
            return _union(worker for worker in self.active if not worker.tasks) or self.lanes
        return self.lanes

    def shortest_lease(self) -> float:
        """In seconds. During a reload, old workers still have the leases of the old code."""
        steps = (step for worker in self.active for step in worker.lanes.values())
        return min((step.policy.lease.total_seconds() for step in steps), default=_DEFAULT_LEASE)

    def earliest_lease_end(self) -> float:
        """When the first lease of a worker's tasks expires, on the lease clock; infinity if there is none."""
        workers = (worker for worker in self.active if not worker.killing)
        return min((task.lease_deadline for worker in workers for task in worker.tasks.values()), default=math.inf)

    # Changes

    def add(self, worker: WorkerProcess) -> None:
        """Give the worker a place among the active ones."""
        worker.usage.begin()
        self.active.append(worker)
        self.lanes = _union(self.active)

    def remove(self, worker: WorkerProcess) -> None:
        self.active.remove(worker)
        self.lanes = _union(self.active)

    def swap(self, idle: WorkerProcess, spare: WorkerProcess) -> None:
        """Exchange an active worker and the spare; the order of the others stays, because a caller may iterate."""
        self.active[self.active.index(idle)] = spare
        self.spare = idle
        spare.usage.begin()
        self.lanes = _union(self.active)

    def set_spare(self, worker: WorkerProcess) -> None:
        """Retire the spare that there was."""
        self.retire_spare()
        self.spare = worker

    def retire(self, worker: WorkerProcess) -> None:
        """Ask an idle active worker to exit."""
        self.remove(worker)
        self._end(worker)

    def retire_spare(self) -> None:
        if self.spare is not None:
            self._end(self.spare)
            self.spare = None

    def _end(self, worker: WorkerProcess) -> None:
        self.retired.append(worker)
        worker.end()


def _union(workers: Iterable[WorkerProcess]) -> dict[Lane, Step]:
    """What any of them can run. If several have a lane, the step is that of the last."""
    lanes: dict[Lane, Step] = {}
    for worker in workers:
        lanes |= worker.lanes
    return lanes
