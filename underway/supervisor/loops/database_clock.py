"""Notices that the database's clock was set forward: then leases have lapsed whose owners are well."""

import math
import time
from logging import getLogger

log = getLogger("underway.supervisor")


class DatabaseClock:
    """Compares it with our own monotonic one, from one look to the next."""

    def __init__(self) -> None:
        self._ahead = math.inf  # of ours, at most

    def was_set(self, now: float, asked_at: float, tolerance: float) -> bool:
        """Whether it has gained more than so many seconds since the last look; it said `now`, asked at `asked_at`."""
        # It was read somewhere between these two.
        least, most = now - time.monotonic(), now - asked_at
        gained, self._ahead = least - self._ahead, most
        if gained > tolerance:
            log.warning("the database's clock was set forward by %.0f s: nothing is taken back for a lease", gained)
        return gained > tolerance
