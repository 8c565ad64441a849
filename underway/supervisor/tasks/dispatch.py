"""Which worker gets which task, and how many tasks to claim."""

import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager

from underway.definition.manifest import Lane, Step
from underway.guardian import lease_clock
from underway.supervisor.tasks import prefetch
from underway.supervisor.tasks.held import HeldTasks
from underway.supervisor.tasks.pipeline import Durations, Pipeline, fitting
from underway.supervisor.tasks.prefetch import Prefetch
from underway.supervisor.tasks.task import Task, Worker, message
from underway.supervisor.workers.pool import WorkerPool
from underway.supervisor.workers.process import WorkerProcess
from underway.wire import messages

# A task that has waited this long behind a running one is revoked.
PATIENCE_SECONDS = 0.05
MOST_CLAIMED = 1000
# A task that has waited this long in the supervisor is released, so that other supervisors find it.
STALE_SECONDS = 2.0


class Dispatch:
    """Tasks that wait in the supervisor, and the workers they go to."""

    def __init__(self, pool: WorkerPool, held: HeldTasks) -> None:
        self._pool = pool
        self._held = held
        self.ready: deque[Task] = deque()
        self.suspects: deque[Task] = deque()
        self._durations = Durations()
        self._pipeline = Pipeline(self._durations)
        self._prefetch = Prefetch(self._durations)
        self._expected = 0
        self.closed = False  # the supervisor stops: no task is taken in
        # The results that wait for their commit are as large as they may get: no task is handed out.
        self.backpressured = False

    @property
    def lanes(self) -> Mapping[Lane, Step]:
        """The lanes that can be run here."""
        return self._pool.roster.lanes

    def add(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            (self.suspects if task.suspect else self.ready).append(task)
            self._prefetch.record_input(len(task.input))

    def add_first(self, tasks: list[Task]) -> None:
        """Tasks of runs that were here before: they keep their place in line."""
        self.ready.extendleft(reversed(tasks))

    def record_duration(self, lane: Lane, seconds: float) -> None:
        """Learn from an ended attempt how long such tasks take."""
        self._durations.record(lane, seconds)

    # Handing out

    def pump(self) -> None:
        """Give every worker what it can take. A suspect gets an idle worker to itself."""
        if self.backpressured or (not self.ready and not self.suspects):
            return
        workers = self._pool.roster.active
        self._hand_to_idle(workers)
        share = len(self.ready) // max(len(workers), 1) + 1
        reserved = self._reserved_for_suspect(workers)
        for worker in workers:
            if not self.ready:
                return
            if worker is reserved:
                continue
            room = self._pipeline.room(worker, self.ready[0])
            if room > 0:
                self._hand(worker, self._next_for(worker, fitting(worker, self.ready, min(room, share))))

    def _hand_to_idle(self, workers: list[WorkerProcess]) -> None:
        for worker in workers:
            if not worker.tasks and worker.ready:
                if self.suspects and (alone := self._worker_for(self.suspects[0], worker)):
                    self._hand(alone, [self.suspects.popleft()])
                elif self.ready:
                    self._hand(worker, self._next_for(worker, 1))

    def _worker_for(self, suspect: Task, idle: WorkerProcess) -> WorkerProcess | None:
        """A worker that has not run anything, if the next crash would quarantine the run."""
        if not _may_have(idle, suspect):
            return None
        return self._pool.unused(idle, suspect.lane) if suspect.decisive else idle

    def _reserved_for_suspect(self, workers: list[WorkerProcess]) -> WorkerProcess | None:
        """A worker that gets nothing more until it is idle: under a stream of short tasks none would ever be."""
        able = [worker for worker in workers if self.suspects and self.suspects[0].lane in worker.lanes]
        return min(able, key=lambda worker: len(worker.tasks), default=None)

    def _next_for(self, worker: WorkerProcess, count: int) -> list[Task]:
        ready = self.ready
        if all(_may_have(worker, task) for task in itertools.islice(ready, count)):
            return [ready.popleft() for _ in range(min(count, len(ready)))]
        chosen = [task for task in ready if _may_have(worker, task)][:count]
        for task in chosen:
            ready.remove(task)
        return chosen

    def _hand(self, worker: WorkerProcess, tasks: list[Task]) -> None:
        hand, expires_at = self._held.hand, math.inf
        for task in tasks:
            if task.lease_deadline < expires_at:
                expires_at = task.lease_deadline
            hand(task, worker)
            task.step = worker.lanes[task.lane]  # as the worker's own code declares it: see WorkerPool.reload
            worker.tasks[task.token] = task
        self._pool.guardian.expect_word_by(expires_at)  # before the task can start
        worker.send(*map(message, tasks))

    # Revoking

    def take_back(self, worker: Worker) -> list[Task]:
        """Revoke the tasks that this worker has not started, and return those that will not run.

        The worker writes Started and then reads its inbox; we write Revoke and then read. So a task for which we do not
        find a Started now will be skipped, whenever the worker reaches it, and can go elsewhere at once. For a task
        that we find started, the Skipped or the Result follows.
        """
        behind = [task for task in worker.tasks.values() if task.started_at is None]
        # Each is revoked once: what a worker does not read is buffered here, and would grow with every try.
        new = [task for task in behind if not task.revoked]
        for task in new:
            self._held.revoke(task)
        if not behind or not worker.send(*(messages.Revoke(task.token) for task in new)):
            return []  # the worker does not read: the Revoke is on its way, but nothing is certain yet
        worker.drain()
        taken = [task for task in behind if task.started_at is None and task.token in worker.tasks]
        for task in taken:
            del worker.tasks[task.token]
            worker.revoked.add(task.token)
        return [task for task in taken if self._held.requeue(task)]

    def take_back_waiting(self, now: float) -> None:
        """No task waits long behind a running one, and none at all under backpressure."""
        for worker in self._pool.roster.active:
            running = worker.current
            if (
                len(worker.tasks) > 1
                and running is not None
                and running.started_at is not None
                and (self.backpressured or now - running.started_at > PATIENCE_SECONDS)
            ):
                self.add_first(self.take_back(worker))

    def skipped(self, worker: WorkerProcess, token: int) -> None:
        """Put back a task that the worker did not run: it was revoked, or the worker is tainted.

        A task that was lost while its worker did not read the Revoke does not wait again: it would have run beside its
        new owner.
        """
        worker.revoked.discard(token)
        task = worker.tasks.pop(token, None)
        if task is not None and self._held.requeue(task):
            (self.suspects if task.suspect else self.ready).appendleft(task)

    def overdue(self, now: float) -> list[Task]:
        """Take out the tasks to release: they waited too long for a worker, or their lease may have expired."""
        waiting, lease_now = [*self.ready, *self.suspects], lease_clock.now()
        overdue = [task for task in waiting if now - task.claimed_at > STALE_SECONDS or task.lease_left(lease_now) <= 0]
        self._prefetch.record_unused(bool(overdue))
        for task in overdue:
            self.drop(task)
        return overdue

    def take_unstarted(self, queues: Set[str]) -> list[Task]:
        """Take out the unstarted tasks of these queues, both waiting ones and those already sent to workers."""
        for worker in self._pool.roster.active:
            if any(task.started_at is None and task.lane.queue in queues for task in worker.tasks.values()):
                self.add_first(self.take_back(worker))
        taken = [task for task in (*self.suspects, *self.ready) if task.lane.queue in queues]
        for task in taken:
            self.drop(task)
        return taken

    def drop(self, task: Task) -> None:
        """Forget a task that may wait here."""
        for line in (self.ready, self.suspects):
            if task in line:
                line.remove(task)

    def take_all(self) -> list[Task]:
        """Take out all waiting tasks: the supervisor stops."""
        waiting = [*self.suspects, *self.ready]
        self.suspects.clear()
        self.ready.clear()
        return waiting

    # Claiming

    def expect(self, tasks: int) -> None:
        """This many more tasks may come. A negative number takes back earlier expectations."""
        self._expected += tasks

    @contextmanager
    def expecting(self, tasks: int) -> Iterator[None]:
        """This many tasks were asked for, and may come."""
        self.expect(tasks)
        try:
            yield
        finally:
            self.expect(-tasks)

    def demand(self) -> int:
        """How many tasks to claim now."""
        idle = self.idle()
        target = idle + self._prefetch.target(self._pool.roster.active)
        free = self._free_capacity(target)
        if idle > len(self.ready) + self._expected or free * 2 >= target > 0:
            return max(0, min(self._affordable(free, idle), MOST_CLAIMED))
        return 0

    def free_capacity(self) -> int:
        """How many more tasks would be welcome."""
        idle = self.idle()
        return self._affordable(self._free_capacity(idle + self._prefetch.target(self._pool.roster.active)), idle)

    def room(self) -> int:
        """How many more bytes of input may wait here.

        This counts the waiting inputs, not an average: 400 inputs of 8 MB behind 20,000 small ones took 1.8 GB.
        """
        waiting = sum([len(task.input) for line in (self.ready, self.suspects) for task in line])
        return max(0, prefetch.PREFETCH_BYTES * max(len(self._pool.roster.active), 1) - waiting)

    def idle(self) -> int:
        """How many workers have nothing to do."""
        return sum(not worker.tasks for worker in self._pool.roster.active if worker.ready)

    def _affordable(self, free: int, idle: int) -> int:
        """Limit the claim to the number of idle workers if there is no room for more input."""
        return free if self.room() else min(free, idle - len(self.ready) - self._expected)

    def _free_capacity(self, target: int) -> int:
        if self.closed:
            return 0
        behind = sum(max(0, len(worker.tasks) - 1) for worker in self._pool.roster.active)
        return target - len(self.ready) - behind - self._expected


def _may_have(worker: WorkerProcess, task: Task) -> bool:
    """The worker's manifest has the lane (two generations of the app may run side by side), and the worker does not owe
    a Skipped for this task.

    (A task was revoked and handed to the same worker again. The Skipped of the first time seemed to be that of the
    second, so the task was handed out once more: it ran twice.)
    """
    return task.lane in worker.lanes and task.token not in worker.revoked
