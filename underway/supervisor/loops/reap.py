"""Takes back runs whose lease has expired: their supervisor is gone, cut off, or stopped."""

import asyncio
import math
import time
from collections.abc import Callable
from logging import getLogger

from underway.postgres.reconnecting import LONGEST_PAUSE, ReconnectingConnection
from underway.postgres.supervisor_store import Store
from underway.supervisor.loops.adaptive_batch import AdaptiveBatch
from underway.supervisor.loops.backends import Backends
from underway.supervisor.loops.database_clock import DatabaseClock
from underway.supervisor.loops.errors import FAILED, LoopErrors

log = getLogger("underway.supervisor")

_LIMIT = 500
_WHY = {
    None: "its lease expired",
    "failed": "quarantined: its lease expired once too often",
    "cancelled": "cancelled: its lease expired, its supervisor is gone",
}
_LONGEST_PERIOD = 5.0
# Renewed four times in its life, a lease has so much left when an outage begins: a shorter one harms nobody.
_LEFT_OF_LEASE = 3 / 4
# A look passes over all that were in progress since the last vacuum, a million beside an old snapshot, and commits
# wait for it: it may take this share of the time.
_SHARE = 0.05


class Reaper:
    """Any supervisor reaps; SKIP LOCKED decides which. It never needs to know who is alive: leases tell."""

    def __init__(
        self,
        store: Store,
        work: ReconnectingConnection,
        backends: Backends,
        *,
        shortest_lease: Callable[[], float],
        on_reaped: Callable[[], None],
    ) -> None:
        self._store = store
        self._work = work
        self._backends = backends
        self._shortest_lease = shortest_lease
        self._on_reaped = on_reaped
        self._batch = AdaptiveBatch(_LIMIT)
        self._clock = DatabaseClock()
        self._opened = work.opened
        self._well_at = 0.0
        self._not_before = 0.0
        self._faults = LoopErrors("reaping")

    async def run(self) -> None:
        self._well_at = time.monotonic()
        while True:
            try:
                could_renew_at = await self._rehearse()
                if time.monotonic() >= self._not_before:
                    await self._look(could_renew_at)
            except FAILED as error:
                self._faults.note(error)
                self._well_at = -math.inf
            await asyncio.sleep(min(self._shortest_lease() / 4, _LONGEST_PERIOD))

    async def _rehearse(self) -> float:
        """Do what others have to do for their leases. After a time without it leave them one lease to come back.

        At each turn, or an outage that begins and ends between two looks would not be noticed. By a statement of its
        own: a lock on the table (an ALTER TABLE, a VACUUM FULL) keeps the connections, and in the end lets the reaper
        in before those who could not renew. (Four runs that were about to be released were charged with a crash.)
        """
        could_renew_at = await self._store.rehearse_renewal()
        lease = self._shortest_lease()
        if self._clock.was_set(could_renew_at, self._store.commit_sent_at, lease / 4):
            # All leases have lapsed at once, and all are about to be renewed by the new time.
            self._not_before = max(self._not_before, time.monotonic() + lease)
        now = time.monotonic()
        if self._work.opened != self._opened or self._well_at == -math.inf:
            # And the time between two tries. (Those who came a second late to leases of one lost all that they had to
            # commit.)
            self._not_before = max(self._not_before, now + max(lease, LONGEST_PAUSE))
        elif now - self._well_at > _LEFT_OF_LEASE * lease:
            self._not_before = max(self._not_before, now + lease)
        self._opened, self._well_at = self._work.opened, now
        return could_renew_at

    async def _look(self, expired_by: float) -> None:
        """Take back no more than what had expired while all was well: an outage may come before this is let in."""
        took = 0.0

        async def reap(limit: int, passing_over: int) -> int:
            nonlocal took
            reaped = await self._store.reap(limit, expired_by, passing_over=passing_over)
            took += self._seconds()
            self._taken_back(reaped)
            return len(reaped)

        while True:
            limit = self._batch.rows
            if await self._faults.isolate(reap, self._batch, self._seconds) < limit:
                break
        self._not_before = time.monotonic() + took / _SHARE

    def _seconds(self) -> float:
        """How long the latest statement took, excluding the wait for the connection and for commits on it."""
        return time.monotonic() - self._work.sent_at

    def _taken_back(self, reaped: list[tuple[str, int, str | None]]) -> None:
        if reaped:
            for run, _token, final in reaped:
                log.warning("run taken back, %s", _WHY[final], extra={"about": {"run": run}})
            self._backends.terminate(token for _run, token, _final in reaped)
            self._on_reaped()
