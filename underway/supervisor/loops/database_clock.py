"""Detects that the database's clock was set forward: then leases have expired whose owners are alive."""

import math
import time
from logging import getLogger

log = getLogger("underway.supervisor")


class DatabaseClock:
    """Compares it with our monotonic clock, from one check to the next."""

    def __init__(self) -> None:
        self._ahead = math.inf  # how far it is ahead of ours, at most

    def was_set(self, now: float, asked_at: float, tolerance: float) -> bool:
        """Whether it has gained more than `tolerance` since the last check. It was `now`, when asked at `asked_at`."""
        # It was read at some time between `asked_at` and now.
        least, most = now - time.monotonic(), now - asked_at
        gained, self._ahead = least - self._ahead, most
        if gained > tolerance:
            log.warning("the database's clock was set forward by %.0f s: nothing is taken back for a lease", gained)
        return gained > tolerance
