"""Renews the leases of all held tasks, on a connection of its own: commits, however slow, cannot delay it."""

import random
import time
from logging import getLogger

import psycopg

from underway.guardian import lease_clock
from underway.postgres.listener import Wakeup
from underway.postgres.reconnecting import DatabaseUnavailable
from underway.postgres.supervisor_store import Renewal, Store
from underway.supervisor.loops.adaptive_batch import AdaptiveBatch
from underway.supervisor.loops.loop import Loop
from underway.supervisor.signals import Signals
from underway.supervisor.tasks.held import HeldTasks
from underway.supervisor.tasks.task import Task
from underway.supervisor.workers.pool import WorkerPool

log = getLogger("underway.supervisor")

# A lease is renewed four times in its life, so that three renewals may fail.
RENEWALS_PER_LEASE = 4
# New progress is written at most this often.
PROGRESS_SECONDS = 1.0
# The most renewals in one statement. A supervisor rarely holds more tasks.
MOST_RENEWED = 5000


class RenewLoop(Loop):
    """One statement renews thousands of tasks; it skips locked rows and never waits."""

    def __init__(self, store: Store, wakeup: Wakeup, held: HeldTasks, pool: WorkerPool, signals: Signals) -> None:
        super().__init__("renewal")
        self._store = store
        self._wakeup = wakeup
        self._held = held
        self._pool = pool
        self._signals = signals
        self._batch = AdaptiveBatch(MOST_RENEWED)
        self._renewed_at = 0.0

    async def turn(self) -> float:
        """The turn includes its pause, which ends early when the connection breaks."""
        period = self._pool.roster.shortest_lease() / RENEWALS_PER_LEASE
        due = self._renewed_at + period - lease_clock.now()
        if due <= 0:
            self._renewed_at = lease_clock.now()
            await self.renew(self._held.to_renew(self._renewed_at))
        elif reporting := self._held.with_progress():
            await self.renew(reporting)
        await self._wakeup.subscribe()
        await self._wakeup.rest(min(max(due, 0.01), PROGRESS_SECONDS))
        return 0.0

    def failed(self) -> float:
        self._renewed_at = 0.0
        # No busy loop while the database is unavailable, and the supervisors of a fleet must not return in step.
        return random.uniform(0.1, 0.5)  # noqa: S311

    async def renew(self, tasks: list[Task]) -> None:
        """Renew in the order in which the leases expire, so that after an interruption the most urgent are first."""
        left = sorted(tasks, key=lambda task: task.lease_deadline)
        while left:
            together, left = left[: self._batch.rows], left[self._batch.rows :]
            await self._renew_together(together)

    async def _renew_together(self, tasks: list[Task]) -> None:
        renewals = [Renewal(task.run, task.token, task.lease_seconds, _take_progress(task)) for task in tasks]
        sent_at = lease_clock.now()
        try:
            with self._batch.smaller_if_interrupted(len(renewals)):
                renewed = await self._store.renew(renewals)
        except DatabaseUnavailable:
            _put_back_progress(tasks, renewals)
            raise
        except psycopg.Error as error:
            log.warning("progress cannot be stored: %s", error)
            sent_at = lease_clock.now()
            # Progress may be lost, but no lease may expire because of it.
            renewed = await self._store.renew([renewal._replace(progress=None) for renewal in renewals])
        self._batch.succeeded(len(renewals), seconds=time.monotonic() - self._store.claim_sent_at)
        missing = []
        for task in tasks:
            if task.run in renewed:
                task.lease_deadline = sent_at + task.lease_seconds
            elif not task.ended:
                missing.append(task)
        if missing:
            await self._judge_missing(missing)

    async def _judge_missing(self, missing: list[Task]) -> None:
        """If the row still shows our token, it was only locked, and the next turn renews it; or the run was cancelled.
        A cancelled run is not renewed any more, but it stays ours until its task was stopped and the run closed.
        """
        owned = await self._store.owned([task.run for task in missing], on_leases=True)
        gone = [task for task in missing if (task.run, task.token) not in owned and not task.ended]
        own = [(task.run, task.token) for task in gone if task.transaction]
        # The step has handed over in its own transaction, and its worker is about to report that.
        handed_over = await self._store.recorded(own, on_leases=True) if own else {}
        for task in gone:
            if (task.run, task.token) not in handed_over and not task.ended and task.token in self._held:
                self._signals.task_lost(task)


def _take_progress(task: Task) -> str | None:
    progress, task.progress = task.progress, None
    return None if progress is None else progress.decode(errors="replace")


def _put_back_progress(tasks: list[Task], renewals: list[Renewal]) -> None:
    """Keep unwritten progress for the next renewal, unless the step has reported newer progress since."""
    for task, renewal in zip(tasks, renewals, strict=True):
        if task.progress is None and renewal.progress is not None:
            task.progress = renewal.progress.encode()
