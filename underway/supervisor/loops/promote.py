"""Makes waiting runs pending when they are due, or puts them in line for their key; sleeps until the next is due.

A key that is released is passed on by the same statement. The promoter brings runs to a key that is free, tries again
where the key was locked, and sweeps over all keys now and then, in case a process was killed before it passed one on.
"""

import time

from underway.postgres.supervisor_store import Store
from underway.supervisor.loops.adaptive_batch import AdaptiveBatch
from underway.supervisor.loops.loop import Loop
from underway.supervisor.loops.time_share import TimeShare
from underway.supervisor.signals import Signals

_LIMIT = 1000
# Each run that gets in line takes a lock for its key: sixteen supervisors with a thousand of them each filled the lock
# table that all sessions of the server share, and statements of other applications failed as well.
_LINED_UP = 500
_POLL_SECONDS = 1.0
# A due row that stays locked must not cause a busy loop.
_SHORTEST_PAUSE = 0.01
_LOCKED_PAUSE = 0.03
_SWEEP_SECONDS = 5.0
_SWEPT_KEYS = 500
# A scan from the start of the line passes over all rows that have left it since the last vacuum.
_SCAN_SHARE = 0.03


class PromoteLoop(Loop):
    """Every supervisor promotes; SKIP LOCKED shares the rows between them."""

    shortest_pause = _SHORTEST_PAUSE  # commits need the connection, too

    def __init__(self, store: Store, signals: Signals) -> None:
        super().__init__("promotion")
        self._store = store
        self._signals = signals
        self._scan = TimeShare(_SCAN_SHARE)
        self._swept_at = 0.0
        self._swept_to = ("", "")
        self._promotion = AdaptiveBatch(_LIMIT)
        self._join_key_queue = AdaptiveBatch(_LINED_UP)
        self._swept = AdaptiveBatch(_SWEPT_KEYS)
        store.on_locked_keys = lambda: self.wake(_LOCKED_PAUSE)

    async def turn(self) -> float:
        pause = await self._promote_due()
        await self._sweep()
        return pause

    def failed(self) -> float:
        return _POLL_SECONDS

    async def _promote_due(self) -> float:
        """Promote the runs that are due. Returns the seconds until there is more to do."""
        from_start = self._scan.is_due()
        due = await self._store.seconds_until_due(from_start=from_start)
        if from_start:
            self._scan.used(self._statement_seconds())
        if self._store.locked_keys or (due is not None and due <= 0):
            if await self._promote(from_start=from_start):
                self._signals.run_pending()
            if self.passed_over:
                return _POLL_SECONDS  # the skipped rows stay due
            due = await self._store.seconds_until_due(from_start=False)
        pause = _POLL_SECONDS if due is None else min(max(due, _SHORTEST_PAUSE), _POLL_SECONDS)
        return min(pause, _LOCKED_PAUSE) if self._store.locked_keys else pause

    async def _promote(self, *, from_start: bool) -> bool:
        """Promote a batch. Returns whether a run may have become pending."""
        lined_up = await self.isolate(
            lambda limit, passing_over: self._store.join_key_queue(
                limit, from_start=from_start, passing_over=passing_over
            ),
            self._join_key_queue,
            self._statement_seconds,
        )
        passed_over = self.passed_over
        promoted = await self.isolate(
            lambda limit, passing_over: self._store.promote(limit, from_start=from_start, passing_over=passing_over),
            self._promotion,
            self._statement_seconds,
        )
        self.passed_over += passed_over
        return lined_up + promoted > 0

    async def _sweep(self) -> None:
        if time.monotonic() >= self._swept_at + _SWEEP_SECONDS:
            self._swept_at = time.monotonic()
            limit = self._swept.rows
            with self._swept.smaller_if_interrupted(limit):
                self._swept_to = await self._store.sweep_keys(self._swept_to, limit)
            self._swept.succeeded(limit, seconds=self._statement_seconds())

    def _statement_seconds(self) -> float:
        """How long the statement took that has just returned."""
        return time.monotonic() - self._store.commit_sent_at
