"""How many tasks are claimed ahead of need: enough to hide a claim, few enough to leave work to other supervisors."""

import time

from underway.supervisor.tasks.pipeline import Durations
from underway.supervisor.workers.process import WorkerProcess

# For each worker this much work is prefetched.
PREFETCH_SECONDS = 0.5
MOST_PREFETCHED = 1000
# At most this much input waits per worker, plus one input for a worker that has no other task.
PREFETCH_BYTES = 4 * 1024 * 1024
# After tasks went back unused, this much less is prefetched, and slowly more again. (Beside busy neighbours, and dead
# rows kept by an old snapshot, half of the claimed tasks went back unused, and each of them left two more dead rows.)
_LESS, _MORE, _LEAST = 0.5, 1.05, 0.01


class Prefetch:
    def __init__(self, durations: Durations) -> None:
        self._durations = durations
        self._input_bytes = 0.0  # a moving average of the size of an input
        self._factor = 1.0  # the share of the possible prefetch that is used

    def record_input(self, size: int) -> None:
        self._input_bytes += 0.1 * (size - self._input_bytes)

    def record_unused(self, any_unused: bool) -> None:
        """Tasks did or did not wait until they had to be released."""
        self._factor = max(self._factor * _LESS, _LEAST) if any_unused else min(self._factor * _MORE, 1.0)

    def target(self, workers: list[WorkerProcess]) -> int:
        """How many tasks should wait in the supervisor or behind a running task, besides one for each idle worker."""
        now, each = time.monotonic(), self._per_worker()
        soon_free = [worker for worker in workers if worker.ready and _is_soon_free(worker, now)]
        return sum(min(each, worker.most_pipelined) for worker in soon_free)

    def _per_worker(self) -> int:
        """How many tasks should wait for each worker that will soon be free."""
        if self._durations.overall is None:
            return 0
        by_time = PREFETCH_SECONDS / max(self._durations.overall, 1e-6)
        by_size = PREFETCH_BYTES / max(self._input_bytes, 1)
        return int(min(by_time, by_size, MOST_PREFETCHED) * self._factor)


def _is_soon_free(worker: WorkerProcess, now: float) -> bool:
    """The worker is idle, or what it runs will probably end soon."""
    running = worker.current
    if running is not None and running.suspect:
        return False
    return running is None or running.started_at is None or now - running.started_at < PREFETCH_SECONDS
