"""Limits an expensive scan to a share of the time."""

import time


class TimeShare:
    """Often while the scan is cheap, seldom while it is expensive. Commits wait while it runs."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._next_at = 0.0

    def is_due(self) -> bool:
        return time.monotonic() >= self._next_at

    def left(self) -> float:
        """Seconds until the scan is due; negative if it is overdue."""
        return self._next_at - time.monotonic()

    def used(self, seconds: float) -> None:
        """The scan has just ended, and took this long."""
        self._next_at = time.monotonic() + seconds / self._share

    def postpone(self, seconds: float) -> None:
        """The scan is not due for this many seconds."""
        self._next_at = max(self._next_at, time.monotonic() + seconds)
