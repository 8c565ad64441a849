"""Replaces workers that have reached a limit, run old code, or are tainted: each when it is idle and a spare is ready.

So a replacement costs no more than handing the next task to another worker, and while new workers do not boot, the old
ones keep working.
"""

import time
from logging import getLogger

from underway.supervisor.workers.boot import WorkerBoots
from underway.supervisor.workers.process import WorkerProcess
from underway.supervisor.workers.recycle import MemorySampler
from underway.supervisor.workers.roster import Roster
from underway.wire import messages

log = getLogger("underway.supervisor")

_OLD_CODE = "its code is old"
_LONGEST_REASON = 200


class Replacement:
    """Decides which active workers are due, and gives their places to spares."""

    def __init__(self, roster: Roster, boots: WorkerBoots, memory_sampler: MemorySampler) -> None:
        self._roster = roster
        self._boots = boots
        self._memory_sampler = memory_sampler
        self._any_due = False

    # Who is due

    def check(self, now: float) -> None:
        """At every tick: mark the workers that have reached a limit."""
        active = self._roster.active
        if self._memory_sampler.is_due(now):
            self._memory_sampler.sample({worker.pid: worker.usage for worker in active}, now)
        for worker in active:
            self._check_limits(worker, now)

    def count(self, worker: WorkerProcess, result: messages.Result) -> None:
        """A task of the worker has ended."""
        worker.usage.tasks += 1
        task = worker.tasks.get(result.token)
        if task is not None and task.stop_reason is not None:
            worker.usage.left = worker.has_children()
        if worker.usage.left or worker.usage.tasks >= worker.usage.tasks_due:
            self._check_limits(worker, time.monotonic())

    def taint(self, worker: WorkerProcess, reason: str) -> None:
        """The worker cannot restore its process after a step. It runs no more tasks and returns those it was given."""
        worker.usage.taint = reason[:_LONGEST_REASON] or "a step has tainted it"
        worker.paused = True
        self._check_limits(worker, time.monotonic())

    def reload(self) -> None:
        """All workers are due."""
        for worker in self._roster.active:
            self._mark_due(worker, _OLD_CODE)

    def _check_limits(self, worker: WorkerProcess, now: float) -> None:
        if not worker.due and (reason := worker.usage.reached(now)):
            self._mark_due(worker, reason)

    def _mark_due(self, worker: WorkerProcess, reason: str) -> None:
        worker.due = reason
        self._any_due = True

    # Who takes the place

    def promote_spare(self) -> None:
        """Give a free place to the spare, if there is one."""
        spare = self._roster.spare
        if spare is None:
            return
        self._roster.spare = None
        self._roster.add(spare)
        if self._roster.is_old(spare):
            self._mark_due(spare, _OLD_CODE)
        elif spare.usage.taint:  # it had run tasks before it became the spare, and has just reported this
            self._mark_due(spare, spare.usage.taint)

    def replace_idle(self) -> bool:
        """Replace idle workers that are due, as far as there are spares. Returns whether any worker was due."""
        if not self._any_due:
            return False
        for worker in [worker for worker in self._roster.active if worker.due and not worker.tasks]:
            if self._roster.fresh_spare is None:
                self._keep(worker)
            else:
                self._replace(worker)
        self._any_due = any(worker.due for worker in self._roster.active)
        return True

    def _keep(self, worker: WorkerProcess) -> None:
        """Keep the worker at work, unless a limit is fully reached.

        It stays at work even then while the new code does not boot. A tainted worker is always paused, because it would
        skip every task.
        """
        worker.paused = bool(worker.usage.taint) or (worker.usage.over_limit and not self._boots.trouble)

    def _replace(self, worker: WorkerProcess) -> None:
        log.info("worker replaced: %s", worker.due, extra={"about": {"worker": worker.slot, "pid": worker.pid}})
        self._roster.retire(worker)
        self.promote_spare()
        self._boots.reset_backoff(worker.slot)
        if self._roster.is_old(worker) and not self._roster.old_count:
            log.info("reloaded: all workers run the new code")
