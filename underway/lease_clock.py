"""The clock by which a lease that we hold lapses."""

import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Seconds, like `time.monotonic()`, which stands still while Linux is suspended. The database's clock does not.

    (A laptop that slept for an hour took its leases for fresh when it woke up, and ran on beside their new owners.)
    """
    return time.clock_gettime(_CLOCK)
