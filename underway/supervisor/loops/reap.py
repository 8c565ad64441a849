"""Takes back runs whose leases have expired: their supervisor is dead, cut off, or stopped."""

import math
import time
from logging import getLogger

from underway.postgres.reconnecting import LONGEST_PAUSE, ReconnectingConnection
from underway.postgres.supervisor_store import Store
from underway.supervisor.loops.adaptive_batch import AdaptiveBatch
from underway.supervisor.loops.backends import BackendLoop
from underway.supervisor.loops.database_clock import DatabaseClock
from underway.supervisor.loops.loop import Loop
from underway.supervisor.loops.time_share import TimeShare
from underway.supervisor.signals import Signals
from underway.supervisor.workers.pool import WorkerPool

log = getLogger("underway.supervisor")

_LIMIT = 500
_REASONS = {
    None: "its lease expired",
    "failed": "quarantined: its lease expired once too often",
    "cancelled": "cancelled: its lease expired, its supervisor is gone",
}
_LONGEST_PERIOD = 5.0
# A lease is renewed four times in its life, so this share of it is left when an outage begins: a shorter outage harms
# no run.
_LEFT_OF_LEASE = 3 / 4
# A scan passes over all runs that were in progress since the last vacuum: a million, beside an old snapshot.
_SCAN_SHARE = 0.05


class ReapLoop(Loop):
    """Every supervisor reaps; SKIP LOCKED shares the rows between them. Leases alone say which of them are alive."""

    def __init__(
        self,
        store: Store,
        work: ReconnectingConnection,
        backends: BackendLoop,
        pool: WorkerPool,
        signals: Signals,
    ) -> None:
        super().__init__("reaping")
        self._store = store
        self._work = work
        self._backends = backends
        self._pool = pool
        self._signals = signals
        self._batch = AdaptiveBatch(_LIMIT)
        self._clock = DatabaseClock()
        self._opened = work.opened
        self._well_at = time.monotonic()
        self._scan = TimeShare(_SCAN_SHARE)

    async def turn(self) -> float:
        could_renew_at = await self._rehearse()
        if self._scan.is_due():
            await self._reap(could_renew_at)
        return self._period()

    def failed(self) -> float:
        self._well_at = -math.inf
        return self._period()

    def _period(self) -> float:
        return min(self._pool.roster.shortest_lease() / 4, _LONGEST_PERIOD)

    async def _rehearse(self) -> float:
        """Do what other supervisors must do to renew. After a time in which it failed, give them one lease to return.

        This is done at every turn; otherwise an outage between two turns would not be noticed. It is a statement of its
        own: a lock on the table (an ALTER TABLE, a VACUUM FULL) keeps the connections, and may let the reaper in before
        the supervisors that could not renew. (Four runs that were about to be released were charged with a crash.)
        """
        could_renew_at = await self._store.rehearse_renewal()
        lease = self._pool.roster.shortest_lease()
        if self._clock.was_set(could_renew_at, self._store.commit_sent_at, lease / 4):
            # All leases have expired at once, and all are about to be renewed by the new time.
            self._scan.postpone(lease)
        now = time.monotonic()
        if self._work.opened != self._opened or self._well_at == -math.inf:
            # Including the time between two attempts to connect. (Supervisors that came a second late to leases of one
            # second lost everything that they had to commit.)
            self._scan.postpone(max(lease, LONGEST_PAUSE))
        elif now - self._well_at > _LEFT_OF_LEASE * lease:
            self._scan.postpone(lease)
        self._opened, self._well_at = self._work.opened, now
        return could_renew_at

    async def _reap(self, expired_by: float) -> None:
        """Take back only runs whose leases had expired while all was well: an outage may begin before the statement."""
        used = 0.0

        async def reap(limit: int, passing_over: int) -> int:
            nonlocal used
            reaped = await self._store.reap(limit, expired_by, passing_over=passing_over)
            used += self._statement_seconds()
            self._report(reaped)
            return len(reaped)

        while True:
            limit = self._batch.rows
            if await self.isolate(reap, self._batch, self._statement_seconds) < limit:
                break
        self._scan.used(used)

    def _statement_seconds(self) -> float:
        """How long the latest statement took, excluding the wait for the connection and for commits on it."""
        return time.monotonic() - self._work.sent_at

    def _report(self, reaped: list[tuple[str, int, str | None]]) -> None:
        if reaped:
            for run, _token, final in reaped:
                log.warning("run taken back, %s", _REASONS[final], extra={"about": {"run": run}})
            self._backends.terminate(token for _run, token, _final in reaped)
            self._signals.run_due_in(0)
