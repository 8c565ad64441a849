"""Notices that the database's clock was set forward: then leases have lapsed whose owners are well."""

import math
import time
from logging import getLogger

from underway.postgres.store import Store

log = getLogger("underway.supervisor")


class DatabaseClock:
    """Compares it with our own monotonic one, from one look to the next."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ahead = math.inf  # of ours, at most

    async def was_set(self, tolerance: float) -> bool:
        """Whether it has gained more than so many seconds since the last look."""
        now = await self._store.clock()
        # It was read somewhere between these two.
        least, most = now - time.monotonic(), now - self._store.commit_sent_at
        gained, self._ahead = least - self._ahead, most
        if gained > tolerance:
            log.warning("the database's clock was set forward by %.0f s: nothing is taken back for a lease", gained)
        return gained > tolerance
