"""Takes back runs whose lease has expired: their supervisor is gone, cut off, or stopped."""

import asyncio
import time
from collections.abc import Callable
from logging import getLogger

import psycopg

from underway.postgres.session import LONGEST_PAUSE, DatabaseAway, Session
from underway.postgres.store import Store
from underway.supervisor.backends import Backends
from underway.supervisor.database_clock import DatabaseClock

log = getLogger("underway.supervisor")

_LIMIT = 500
_WHY = {
    None: "its lease expired",
    "failed": "quarantined: its lease expired once too often",
    "cancelled": "cancelled: its lease expired, its supervisor is gone",
}
_LONGEST_PERIOD = 5.0
# A look passes over all that were in progress since the last vacuum, a million beside an old snapshot, and commits
# wait for it: it may take this share of the time.
_SHARE = 0.05


class Reaper:
    """Any supervisor reaps; SKIP LOCKED decides which. It never needs to know who is alive: leases tell."""

    def __init__(
        self,
        store: Store,
        work: Session,
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
        self._clock = DatabaseClock(store)
        self._opened = work.opened
        self._not_before = 0.0

    async def run(self) -> None:
        while True:
            took = 0.0
            try:
                took = await self._reap()
            except DatabaseAway as error:
                log.warning("reaping interrupted: %s", error)
                # Perhaps by a lock on the table, which keeps the connections and lets no lease be renewed.
                self._not_before = time.monotonic() + self._shortest_lease()
            except psycopg.Error as error:  # one row, written by hand, must not end every supervisor there is
                log.error("no run can be taken back, one that should be holds what cannot be: %s", error)
            await asyncio.sleep(max(min(self._shortest_lease() / 4, _LONGEST_PERIOD), took / _SHARE))

    async def _reap(self) -> float:
        """How long the look took: without the wait for a database that is away, or the next would come hours later."""
        await self._work.ready()  # or the look would be sent the moment it is back
        lease = self._shortest_lease()
        if await self._clock.was_set(lease / 4):
            # All leases have lapsed at once, and all are about to be renewed by the new time.
            self._not_before = time.monotonic() + lease
        if self._work.opened != self._opened:
            # The database was away: others could not renew either. Leave them one lease to come back, and the time
            # between two tries. (Those who came a second late to leases of one lost all that they had to commit.)
            self._opened = self._work.opened
            self._not_before = time.monotonic() + max(lease, LONGEST_PAUSE)
        began = time.monotonic()
        if began < self._not_before:
            return 0.0
        while reaped := await self._store.reap(_LIMIT):
            for run, _token, final in reaped:
                log.warning("run taken back, %s", _WHY[final], extra={"about": {"run": run}})
            self._backends.terminate(token for _run, token, _final in reaped)
            self._on_reaped()
            if len(reaped) < _LIMIT:
                break
        return time.monotonic() - began
