"""How many short tasks one worker is sent at once: enough to hide the way to the supervisor and back."""

import itertools
import time
from collections.abc import Iterable

from underway.definition.manifest import Lane
from underway.supervisor.tasks.task import Task
from underway.supervisor.workers.process import WorkerProcess

# Only tasks of steps that take at most this long are pipelined, and then as many as fill PIPELINE_SECONDS.
SHORT_SECONDS = 0.05
PIPELINE_SECONDS = 0.02
MOST_PIPELINED = 400
# The tasks that a worker has not started fit into its socket together with the messages that follow them: a worker that
# reads an interrupt must find it there, and a Revoke that the worker can find is what makes a task ours again.
PIPELINE_BYTES = 96 * 1024
_HEADER_BYTES = 150


class Durations:
    """How long attempts take: moving averages for each lane, and for all."""

    def __init__(self) -> None:
        self._by_step: dict[tuple[str, str], float] = {}
        self.overall: float | None = None

    def record(self, lane: Lane, seconds: float) -> None:
        key = (lane.job, lane.step)
        known = self._by_step.get(key)
        self._by_step[key] = seconds if known is None else known + 0.2 * (seconds - known)
        self.overall = seconds if self.overall is None else self.overall + 0.1 * (seconds - self.overall)

    def of(self, lane: Lane) -> float | None:
        return self._by_step.get((lane.job, lane.step))


class Pipeline:
    """A worker gets more tasks behind a running one if all of them are known to be short."""

    def __init__(self, durations: Durations) -> None:
        self._durations = durations

    def room(self, worker: WorkerProcess, following: Task) -> int:
        """How many more tasks this busy worker should be sent; `following` is the next one."""
        running = next(iter(worker.tasks.values()), None)
        if running is None or running.suspect or not worker.ready:
            return 0
        limit = min(self._limit(running.lane), self._limit(following.lane), worker.most_pipelined)
        if running.started_at is not None and time.monotonic() - running.started_at > SHORT_SECONDS:
            return 0
        # Only in half windows: a frame with many tasks costs little more than a frame with one.
        return limit - len(worker.tasks) if len(worker.tasks) <= limit // 2 else 0

    def _limit(self, lane: Lane) -> int:
        seconds = self._durations.of(lane)
        if seconds is None or seconds > SHORT_SECONDS:
            return 1
        return 1 + min(MOST_PIPELINED - 1, max(1, int(PIPELINE_SECONDS / max(seconds, 1e-6))))


def fitting(worker: WorkerProcess, waiting: Iterable[Task], most: int) -> int:
    """How many of the next tasks fit into the worker's socket, behind the tasks that it has not started."""
    left = PIPELINE_BYTES - sum([_frame_bytes(task) for task in worker.tasks.values() if task.started_at is None])
    for count, task in enumerate(itertools.islice(waiting, most)):
        left -= _frame_bytes(task)
        if left < 0:
            return count
    return most


def _frame_bytes(task: Task) -> int:
    return len(task.input) + _HEADER_BYTES
