"""Which worker gets which task, how many at once, and how many to claim."""

import itertools
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager

from underway.definition.manifest import Lane, Step
from underway.guardian import lease_clock
from underway.supervisor.tasks.task import Task, message
from underway.supervisor.workers.pool import WorkerPool
from underway.supervisor.workers.process import WorkerProcess
from underway.wire import messages

# A worker is handed more than one task only of steps that take at most this long, and then as many as fill
# HANDED_SECONDS: enough to hide the way to the supervisor and back.
SHORT_SECONDS = 0.05
HANDED_SECONDS = 0.02
MOST_HANDED = 400
# What a worker has not begun fits into its socket, and so does what comes behind it: it must be there for a worker that
# looks at an interrupt, and a Revoke that it can find is what makes a task ours again.
HANDED_BYTES = 96 * 1024
_HEADER_BYTES = 150
# Whatever has waited so long behind a running task is taken back.
PATIENCE_SECONDS = 0.05
# So much work per worker is claimed ahead: enough to hide a claim, little enough to leave to other supervisors.
AHEAD_SECONDS = 0.5
MOST_AHEAD = 1000
MOST_CLAIMED = 1000
# At most this much input waits per worker, plus one input for a worker that has no other task.
AHEAD_BYTES = 4 * 1024 * 1024
# A task that has waited so long in this supervisor goes back to Postgres, where others find it.
STALE_SECONDS = 2.0
# After that so much less is claimed ahead, and slowly more again. (Beside busy neighbours, and dead rows kept by some
# snapshot, half of what was claimed went back unused, and each of it left two more dead rows.)
_FEWER, _MORE, _FEWEST = 0.5, 1.05, 0.01


class Dispatch:
    """Tasks that wait in the supervisor, and the workers they go to."""

    def __init__(self, crew: WorkerPool) -> None:
        self._crew = crew
        self.ready: deque[Task] = deque()
        self.suspects: deque[Task] = deque()
        self._pace: dict[tuple[str, str], float] = {}
        self._overall: float | None = None
        self._size = 0.0
        self._expected = 0
        self._prefetch_factor = 1.0  # the share of what could be claimed ahead
        self.closed = False  # nothing new is taken in: the supervisor stops
        self.backpressured = (
            False  # nothing is handed out: the results that wait for Postgres are as large as they may get
        )

    @property
    def lanes(self) -> Mapping[Lane, Step]:
        """What can be run here."""
        return self._crew.lanes

    def add(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            (self.suspects if task.suspect else self.ready).append(task)
            self._size += 0.1 * (len(task.input) - self._size)

    def add_first(self, tasks: list[Task]) -> None:
        """Tasks of runs that were here before: they keep their place in line."""
        self.ready.extendleft(reversed(tasks))

    def took(self, lane: Lane, seconds: float) -> None:
        """Learn from a finished attempt how long such tasks take."""
        key = (lane.job, lane.step)
        known = self._pace.get(key)
        self._pace[key] = seconds if known is None else known + 0.2 * (seconds - known)
        self._overall = seconds if self._overall is None else self._overall + 0.1 * (seconds - self._overall)

    # Handing out

    def pump(self) -> None:
        """Give every worker what it can take. A suspect gets an idle worker to itself."""
        if self.backpressured or (not self.ready and not self.suspects):
            return
        workers = self._crew.active
        for worker in workers:
            if not worker.tasks and worker.ready:
                if self.suspects and (alone := self._place_for(self.suspects[0], worker)):
                    self._hand(alone, [self.suspects.popleft()])
                elif self.ready:
                    self._hand(worker, self._next_for(worker, 1))
        share = len(self.ready) // max(len(workers), 1) + 1
        reserved = self._reserved_for_suspect(workers)
        for worker in workers:
            if not self.ready:
                return
            if worker is reserved:
                continue
            room = self._room(worker)
            if room > 0:
                self._hand(worker, self._next_for(worker, self._fitting(worker, min(room, share))))

    def _place_for(self, suspect: Task, idle: WorkerProcess) -> WorkerProcess | None:
        """A worker that nobody else has touched, if the next crash is to be the run's last."""
        if not _may_have(idle, suspect):
            return None
        return self._crew.unused(idle, suspect.lane) if suspect.decisive else idle

    def _reserved_for_suspect(self, workers: list[WorkerProcess]) -> WorkerProcess | None:
        """A worker that gets nothing more until it is idle: under a stream of short tasks none ever would be."""
        able = [worker for worker in workers if self.suspects and self.suspects[0].lane in worker.lanes]
        return min(able, key=lambda worker: len(worker.tasks), default=None)

    def _room(self, worker: WorkerProcess) -> int:
        """How many more tasks this busy worker should be handed."""
        running = next(iter(worker.tasks.values()), None)
        if running is None or running.suspect or not worker.ready:
            return 0
        limit = min(self._handed_limit(running.lane), self._handed_limit(self.ready[0].lane), worker.most_handed)
        if running.started_at is not None and time.monotonic() - running.started_at > SHORT_SECONDS:
            return 0
        # Only in half windows: a frame with many tasks costs little more than a frame with one.
        return limit - len(worker.tasks) if len(worker.tasks) <= limit // 2 else 0

    def _fitting(self, worker: WorkerProcess, most: int) -> int:
        """How many of the next tasks fit behind what it has not begun."""
        left = HANDED_BYTES - sum(_frame_bytes(task) for task in worker.tasks.values() if task.started_at is None)
        for count, task in enumerate(itertools.islice(self.ready, most)):
            left -= _frame_bytes(task)
            if left < 0:
                return count
        return most

    def _handed_limit(self, lane: Lane) -> int:
        seconds = self._pace.get((lane.job, lane.step))
        if seconds is None or seconds > SHORT_SECONDS:
            return 1
        return 1 + min(MOST_HANDED - 1, max(1, int(HANDED_SECONDS / max(seconds, 1e-6))))

    def _next_for(self, worker: WorkerProcess, count: int) -> list[Task]:
        ready = self.ready
        if all(_may_have(worker, task) for task in itertools.islice(ready, count)):
            return [ready.popleft() for _ in range(min(count, len(ready)))]
        chosen = [task for task in ready if _may_have(worker, task)][:count]
        for task in chosen:
            ready.remove(task)
        return chosen

    def _hand(self, worker: WorkerProcess, tasks: list[Task]) -> None:
        lapses_at = math.inf
        for task in tasks:
            if task.lease_deadline < lapses_at:
                lapses_at = task.lease_deadline
            task.worker = worker
            task.revoking = False
            task.step = worker.lanes[task.lane]  # as its own code has it, beside another generation of the app
            worker.tasks[task.token] = task
        self._crew.vouch_until(lapses_at)  # before the task can start
        worker.send(*map(message, tasks))

    # Taking back

    def take_back(self, worker: WorkerProcess) -> list[Task]:
        """Take back what this worker has not begun, and return it.

        The worker writes Started and then reads its inbox; we write Revoke and then read. So a task of which we do
        not find a Started now will be skipped, whenever the worker gets to it, and can go elsewhere at once. One
        that is found started is sorted out by the Skipped or the Result that follows.
        """
        behind = [task for task in worker.tasks.values() if task.started_at is None]
        # Once: what is sent to a worker that does not read waits here, and would be more with every try.
        news = [task for task in behind if not task.revoking]
        for task in news:
            task.revoking = True
        if not behind or not worker.send(*(messages.Revoke(task.token) for task in news)):
            return []  # it does not read: the revocation is on its way, but nothing is certain yet
        worker.drain()
        taken = [task for task in behind if task.started_at is None and task.token in worker.tasks]
        for task in taken:
            del worker.tasks[task.token]
            worker.revoked.add(task.token)
            task.worker = None
        return taken

    def take_back_waiting(self, now: float) -> None:
        """Nothing waits long behind a running task, and nothing at all while tasks are held back."""
        for worker in self._crew.active:
            running = worker.current
            if (
                len(worker.tasks) > 1
                and running is not None
                and running.started_at is not None
                and (self.backpressured or now - running.started_at > PATIENCE_SECONDS)
            ):
                self.add_first(self.take_back(worker))

    def skipped(self, worker: WorkerProcess, token: int) -> None:
        """Put back a task that the worker did not run: it was revoked, or the worker is spoilt."""
        worker.revoked.discard(token)
        task = worker.tasks.pop(token, None)
        if task is not None:
            task.worker = task.started_at = None
            task.stop_sent_at = task.stop_reason = None  # an interrupt that it got was for this start, not for the next
            (self.suspects if task.suspect else self.ready).appendleft(task)

    def overdue(self, now: float) -> list[Task]:
        """Tasks to give back: waiting too long while all workers are busy, or under a lease that may have lapsed."""
        waiting, lapsed = [*self.ready, *self.suspects], lease_clock.now()
        overdue = [task for task in waiting if now - task.claimed_at > STALE_SECONDS or lapsed >= task.lease_deadline]
        self._prefetch_factor = (
            max(self._prefetch_factor * _FEWER, _FEWEST) if overdue else min(self._prefetch_factor * _MORE, 1.0)
        )
        for task in overdue:
            self.drop(task)
        return overdue

    def take_unstarted(self, queues: Set[str]) -> list[Task]:
        """Take back the unstarted tasks of these queues, both waiting ones and those already sent to workers."""
        for worker in self._crew.active:
            if any(task.started_at is None and task.lane.queue in queues for task in worker.tasks.values()):
                self.add_first(self.take_back(worker))
        taken = [task for task in (*self.suspects, *self.ready) if task.lane.queue in queues]
        for task in taken:
            self.drop(task)
        return taken

    def drop(self, task: Task) -> None:
        """Forget a task that waits here; it is lost."""
        for line in (self.ready, self.suspects):
            if task in line:
                line.remove(task)

    def take_all(self) -> list[Task]:
        """Everything that waits, for a supervisor that stops."""
        waiting = [*self.suspects, *self.ready]
        self.suspects.clear()
        self.ready.clear()
        return waiting

    # Claiming

    def expect(self, tasks: int) -> None:
        """So many more tasks may come; a negative number of them will not, or have."""
        self._expected += tasks

    @contextmanager
    def expecting(self, tasks: int) -> Iterator[None]:
        """So many tasks have been asked for, and may come."""
        self.expect(tasks)
        try:
            yield
        finally:
            self.expect(-tasks)

    def demand(self) -> int:
        """How many tasks to claim now."""
        idle = self.idle()
        target = self._target(idle)
        free_capacity = self._places(target)
        if idle > len(self.ready) + self._expected or free_capacity * 2 >= target > 0:
            return max(0, min(self._affordable(free_capacity, idle), MOST_CLAIMED))
        return 0

    def free_capacity(self) -> int:
        """How many more tasks would be welcome."""
        idle = self.idle()
        return self._affordable(self._places(self._target(idle)), idle)

    def room(self) -> int:
        """How many more bytes of input may wait here.

        This counts the waiting inputs, not an average: 400 inputs of 8 MB behind 20,000 small ones took 1.8 GB.
        """
        waiting = sum([len(task.input) for line in (self.ready, self.suspects) for task in line])
        return max(0, AHEAD_BYTES * max(len(self._crew.active), 1) - waiting)

    def _affordable(self, free_capacity: int, idle: int) -> int:
        """Limit the claim to the number of idle workers if there is no room for more input."""
        return free_capacity if self.room() else min(free_capacity, idle - len(self.ready) - self._expected)

    def _places(self, target: int) -> int:
        if self.closed:
            return 0
        behind = sum(max(0, len(worker.tasks) - 1) for worker in self._crew.active)
        return target - len(self.ready) - behind - self._expected

    def idle(self) -> int:
        """How many workers have nothing to do."""
        return sum(not worker.tasks for worker in self._crew.active if worker.ready)

    def _target(self, idle: int) -> int:
        """How many tasks should wait here or behind a running one."""
        now, ahead = time.monotonic(), self._ahead()
        soon = [worker for worker in self._crew.active if worker.ready and self._is_soon_free(worker, now)]
        return idle + sum(min(ahead, worker.most_handed) for worker in soon)

    def _ahead(self) -> int:
        """How many tasks should wait for each worker that will soon be free."""
        if self._overall is None:
            return 0
        by_time, by_size = AHEAD_SECONDS / max(self._overall, 1e-6), AHEAD_BYTES / max(self._size, 1)
        return int(min(by_time, by_size, MOST_AHEAD) * self._prefetch_factor)

    def _is_soon_free(self, worker: WorkerProcess, now: float) -> bool:
        """Idle, or busy with something that will soon be over, as far as one can tell."""
        running = worker.current
        if running is not None and running.suspect:
            return False
        return running is None or running.started_at is None or now - running.started_at < AHEAD_SECONDS


def _frame_bytes(task: Task) -> int:
    return len(task.input) + _HEADER_BYTES


def _may_have(worker: WorkerProcess, task: Task) -> bool:
    """Its own manifest has it: two generations of the app may be side by side. And it does not owe a Skipped for it.

    (One that was taken back and handed to the same worker again was taken for skipped, by the Skipped of the first
    time, and handed out once more: it ran twice.)
    """
    return task.lane in worker.lanes and task.token not in worker.revoked
