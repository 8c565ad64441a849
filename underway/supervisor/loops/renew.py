"""Renews the leases of everything held, in time whatever the commits do: never on their connection."""

import asyncio
import random
import time
from collections.abc import Callable
from logging import getLogger

import psycopg

from underway.guardian import lease_clock
from underway.postgres.listener import Wakeup
from underway.postgres.reconnecting import DatabaseUnavailable
from underway.postgres.supervisor_store import Renewal, Store
from underway.supervisor.loops.adaptive_batch import AdaptiveBatch
from underway.supervisor.loops.errors import FAILED, LoopErrors
from underway.supervisor.tasks.task import Task

log = getLogger("underway.supervisor")

# A lease is renewed four times in its life, so that three renewals may fail.
RENEWALS_PER_LEASE = 4
# New progress is written at most so often.
PROGRESS_SECONDS = 1.0
# The most renewals in one statement. A supervisor rarely holds more tasks.
MOST_RENEWED = 5000


class Leases:
    """One statement renews thousands of tasks; it skips rows that somebody has locked and never waits."""

    def __init__(
        self,
        store: Store,
        wakeup: Wakeup,
        held: dict[int, Task],
        *,
        shortest_lease: Callable[[], float],
        on_lost: Callable[[Task], None],
    ) -> None:
        self._store = store
        self._wakeup = wakeup
        self._held = held
        self._shortest_lease = shortest_lease
        self._on_lost = on_lost
        self._faults = LoopErrors("renewal")
        self._batch = AdaptiveBatch(MOST_RENEWED)

    async def run(self) -> None:
        renewed_at = 0.0
        while True:
            period = self._shortest_lease() / RENEWALS_PER_LEASE
            due = renewed_at + period - lease_clock.now()
            try:
                if due <= 0:
                    renewed_at = lease_clock.now()
                    await self.renew([task for task in self._held.values() if _should_be_renewed(task, renewed_at)])
                elif reporting := [
                    task for task in self._held.values() if task.progress is not None and not task.transaction
                ]:
                    await self.renew(reporting)
                await self._wakeup.subscribe()
                await self._wakeup.rest(min(max(due, 0.01), PROGRESS_SECONDS))
            except FAILED as error:
                self._faults.note(error)
                renewed_at = 0.0
                # No busy loop while the database is away, and a fleet must not come back in step.
                await asyncio.sleep(random.uniform(0.1, 0.5))  # noqa: S311

    async def renew(self, tasks: list[Task]) -> None:
        """Renew in the order in which the leases expire, so that after an interruption the most urgent are first."""
        left = sorted(tasks, key=lambda task: task.lease_deadline)
        while left:
            together, left = left[: self._batch.rows], left[self._batch.rows :]
            await self._renew_together(together)

    async def _renew_together(self, tasks: list[Task]) -> None:
        renewals = [
            Renewal(task.run, task.token, task.step.policy.lease.total_seconds(), _take_progress(task))
            for task in tasks
        ]
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
            # Progress may be lost; it must cost nobody a lease.
            renewed = await self._store.renew([renewal._replace(progress=None) for renewal in renewals])
        self._batch.succeeded(len(renewals), seconds=time.monotonic() - self._store.claim_sent_at)
        missing = []
        for task in tasks:
            if task.run in renewed:
                task.lease_deadline = sent_at + task.step.policy.lease.total_seconds()
            elif not task.ended:
                missing.append(task)
        if missing:
            await self._sort_out(missing)

    async def _sort_out(self, missing: list[Task]) -> None:
        """A row that still shows our token was only locked by somebody, and the next turn will renew it; or somebody
        has cancelled the run. Then nobody renews it any more, but it stays ours until we have stopped it and closed it.
        """
        owned = await self._store.owned([task.run for task in missing], on_leases=True)
        gone = [task for task in missing if (task.run, task.token) not in owned and not task.ended]
        own = [(task.run, task.token) for task in gone if task.transaction]
        # Handed over by its step, whose worker is about to say so.
        handed_over = await self._store.recorded(own, on_leases=True) if own else {}
        for task in gone:
            if (task.run, task.token) not in handed_over and not task.ended:
                self._on_lost(task)


def _should_be_renewed(task: Task, now: float) -> bool:
    """A step's own transaction that is not READ COMMITTED cannot hand over a row that has changed since it began.

    So leave it alone as long as there is time, and do not write its progress meanwhile.
    """
    return not task.transaction or task.lease_deadline - now < task.step.policy.lease.total_seconds() / 2


def _take_progress(task: Task) -> str | None:
    progress, task.progress = task.progress, None
    return None if progress is None else progress.decode(errors="replace")


def _put_back_progress(tasks: list[Task], renewals: list[Renewal]) -> None:
    """Keep unwritten progress for the next renewal, unless the step has reported newer progress since."""
    for task, renewal in zip(tasks, renewals, strict=True):
        if task.progress is None and renewal.progress is not None:
            task.progress = renewal.progress.encode()
