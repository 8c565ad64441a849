"""Time, memory and lease limits of running tasks, enforced from outside."""

import math
from collections.abc import Iterable
from logging import getLogger

from underway.guardian import lease_clock
from underway.supervisor.tasks.task import Task, Worker
from underway.supervisor.tasks.verdict import Observation
from underway.supervisor.workers.memory import SAMPLE_SECONDS, Memory
from underway.supervisor.workers.process import LAST_WORDS_SECONDS, WorkerProcess
from underway.text import mebibytes
from underway.wire import messages
from underway.wire.signals import STOP_SIGNAL

log = getLogger("underway.supervisor")

# Between the interrupt and the kill, a step may clean up.
CLEANUP_SECONDS = 5.0
_KILLED = {
    "timeout": Observation.KILLED_TIMEOUT,
    "cancel": Observation.KILLED_CANCEL,
    "shutdown": Observation.KILLED_SHUTDOWN,
}
# A worker is killed before its lease expires, so that it is dead when another supervisor may start the run.
LEASE_MARGIN = 0.05
# A growing worker gets less time to write its stacks: at a gigabyte per second it grows by 10 MB.
_HURRIED_WORDS_SECONDS = 0.01
# A worker reports the start of its next task at once; after this long it is considered stuck.
BEGIN_SECONDS = 10.0


class Limits:
    """Enforced at every tick of the supervisor while a task runs."""

    def __init__(self) -> None:
        self._memory = Memory()
        self._sample_at = 0.0
        self._unbegun: dict[int, float] = {}  # by the token of a worker's next task: since when it is next
        self._looked_at = 0.0

    def enforce(self, workers: Iterable[WorkerProcess], now: float) -> None:
        running = [worker for worker in workers if worker.tasks]
        for worker in running:
            task = worker.current
            if task is not None and not self._kill_before_expiry(worker, task):
                self._enforce_stop(worker, task, now)
        self._enforce_begin(running, now)
        if now >= self._sample_at:
            self._enforce_memory([worker for worker in running if _runs_longer_than_a_sample(worker, now)])
            self._sample_at = now + self._memory.pause

    def due_in(self, workers: Iterable[WorkerProcess], now: float) -> float:
        """Seconds until the first running task reaches its timeout or the end of its lease."""
        running = [task for worker in workers if (task := worker.current) is not None]
        lease_now = lease_clock.now()
        return min((min(_limit_of(task) - now, _kill_deadline(task) - lease_now) for task in running), default=math.inf)

    def _kill_before_expiry(self, worker: WorkerProcess, task: Task) -> bool:
        """Self-fencing, by our own clock, from the sending of the last renewal that was accepted."""
        if lease_clock.now() < _kill_deadline(task):
            return False
        _kill(worker, task, Observation.KILLED_LEASE, "it could not be renewed in time")
        return True

    def _enforce_stop(self, worker: WorkerProcess, task: Task, now: float) -> None:
        """First the interrupt, at the timeout unless another reason came first, then the kill."""
        if now < _limit_of(task):
            return
        if task.stop_reason is None:
            interrupt(worker, task, "timeout", now)
            log.warning("interrupted after its timeout of %.1f s", task.step.policy.timeout.total_seconds(),
                        extra={"about": about_task(worker, task)})  # fmt: skip
        else:
            assert task.stop_sent_at is not None
            assert task.started_at is not None
            ran = task.stop_sent_at - task.started_at
            why = f"it did not end within {CLEANUP_SECONDS:.1f} s of its interrupt, which came after {ran:,.1f} s"
            # A step that a shutdown interrupts is not at fault and needs no evidence.
            last_words = 0.0 if task.stop_reason == "shutdown" else LAST_WORDS_SECONDS
            _kill(worker, task, _KILLED[task.stop_reason], why, last_words)

    def _enforce_begin(self, workers: list[WorkerProcess], now: float) -> None:
        """Kill a worker that does not start its next task: it was stopped while it was idle, or code that a step left
        running holds the interpreter. Limits count from the start of a task, so none would ever be reached.
        """
        if now - self._looked_at > BEGIN_SECONDS / 2:
            self._unbegun.clear()  # this supervisor was stopped, not the worker
        self._looked_at = now
        silent = {next(iter(worker.tasks)): worker for worker in workers if worker.tasks and not worker.current}
        self._unbegun = {token: self._unbegun.get(token, now) for token in silent}
        for token, worker in silent.items():
            if now - self._unbegun[token] < BEGIN_SECONDS:
                continue
            worker.drain()
            if worker.current is None and token in worker.tasks and not worker.killing:
                log.error("killed: did not start its next task within %.0f s; another worker gets it", BEGIN_SECONDS,
                          extra={"about": {"worker": worker.slot, "pid": worker.pid}})  # fmt: skip
                worker.kill_between_tasks(last_words=LAST_WORDS_SECONDS)

    def _enforce_memory(self, workers: list[WorkerProcess]) -> None:
        sizes = self._memory.sample(worker.pid for worker in workers)
        for worker in workers:
            task, rss = worker.current, sizes[worker.pid]
            if task is None:
                continue
            task.peak_rss = max(task.peak_rss, rss)
            limit = task.step.policy.memory_limit
            if limit is not None and rss > limit:
                why = f"{mebibytes(rss)} resident, more than its limit of {mebibytes(limit)}"
                _kill(worker, task, Observation.KILLED_MEMORY, why, _HURRIED_WORDS_SECONDS)


def _kill(worker: WorkerProcess, task: Task, seen: Observation, why: str, last_words: float = 0.0) -> None:
    """The log line and the attempt's error say the same."""
    in_time = lease_clock.now() + last_words < _kill_deadline(task)
    if worker.kill_task(task, seen, why, last_words=last_words if in_time else 0.0):
        log.error("%s", worker.kill_message, extra={"about": about_task(worker, task)})


def _limit_of(task: Task) -> float:
    if task.stop_sent_at is not None:
        return task.stop_sent_at + CLEANUP_SECONDS
    assert task.started_at is not None
    return task.started_at + task.step.policy.timeout.total_seconds()


def _kill_deadline(task: Task) -> float:
    return task.lease_deadline - task.step.policy.lease.total_seconds() * LEASE_MARGIN


def interrupt(worker: Worker, task: Task, reason: str, now: float) -> None:
    """Ask a step to stop. The frame names the task; the signal only makes the worker read it."""
    task.stop_sent_at = now
    task.stop_reason = reason
    worker.send(messages.Stop(task.token, reason))
    worker.signal(STOP_SIGNAL)


def _runs_longer_than_a_sample(worker: WorkerProcess, now: float) -> bool:
    """A worker that runs many tasks between two samples would not be caught by one, so none is taken."""
    task = worker.current
    return task is not None and task.started_at is not None and now - task.started_at > SAMPLE_SECONDS


def about_task(worker: Worker, task: Task) -> dict[str, object]:
    return {"worker": worker.slot, **task.about}
