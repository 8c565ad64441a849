"""The clock that measures when this supervisor's leases expire."""

import time

from underway.guardian.script import CLOCK


def now() -> float:
    """Seconds. Unlike `time.monotonic()`, it keeps running while Linux is suspended, as the database's clock does.

    (A laptop that had slept for an hour considered its leases valid when it woke up, and ran steps beside the new
    owners.)
    """
    return time.clock_gettime(CLOCK)
