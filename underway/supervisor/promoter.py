"""Makes waiting runs pending when they are due, or lets them get in line for their key; asleep until the next of them.

Whoever gives up a key passes it on. The promoter brings runs to a key that is free, tries again where somebody else was
passing it on, and sweeps over all keys now and then, for what was missed when a process was killed.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable

from underway.postgres.store import Store
from underway.supervisor.batch import Batch
from underway.supervisor.faults import FAILED, Faults

_LIMIT = 1000
# Each run that gets in line takes a lock for its key: sixteen supervisors with a thousand of them each filled the table
# that all sessions of the server share, and statements of strangers failed as well.
_LINED_UP = 500
_POLL_SECONDS = 1.0
# A due row that somebody has locked must not make a busy loop.
_SHORTEST_PAUSE = 0.01
_LOCKED_PAUSE = 0.03
_SWEEP_SECONDS = 5.0
_SWEPT_KEYS = 500
# A look from the head of the line passes over all that have waited since the last vacuum, and commits wait for it. It
# may take this share of the time: often while that is little, seldom while it is much.
_HEAD_SHARE = 0.03


class Promoter:
    """Any supervisor promotes; SKIP LOCKED decides which."""

    def __init__(self, store: Store, *, on_promoted: Callable[[], None]) -> None:
        self._store = store
        self._on_promoted = on_promoted
        self._hinted = asyncio.Event()
        self._next_look = 0.0
        self._head_at = 0.0
        self._swept_at = 0.0
        self._swept_to = ("", "")
        self._faults = Faults("promotion")
        self._promotion, self._join_key_queue, self._swept = Batch(_LIMIT), Batch(_LINED_UP), Batch(_SWEPT_KEYS)
        store.on_locked_keys = lambda: self.hint(_LOCKED_PAUSE)

    def hint(self, delay: float) -> None:
        """A run will be due in this many seconds."""
        at = time.monotonic() + delay
        if at < self._next_look:
            self._next_look = at
            self._hinted.set()

    async def run(self) -> None:
        while True:
            self._next_look = math.inf  # a hint counts that comes during this look, which may not see what it is about
            pause = _POLL_SECONDS
            try:
                pause = await self._look()
                await self._sweep()
            except FAILED as error:
                self._faults.note(error)
            self.hint(pause)
            await self._sleep()

    async def _look(self) -> float:
        """Promote what is due; how long until there is more to do."""
        from_start = time.monotonic() >= self._head_at
        due = await self._store.seconds_until_due(from_start=from_start)
        if from_start:
            now = time.monotonic()
            self._head_at = now + (now - self._store.commit_sent_at) / _HEAD_SHARE
        if self._store.locked_keys or (due is not None and due <= 0):
            if await self._promote(from_start=from_start):
                self._on_promoted()
            if self._faults.passed_over:
                return _POLL_SECONDS  # the skipped rows stay due
            due = await self._store.seconds_until_due(from_start=False)
        pause = _POLL_SECONDS if due is None else min(max(due, _SHORTEST_PAUSE), _POLL_SECONDS)
        return min(pause, _LOCKED_PAUSE) if self._store.locked_keys else pause

    async def _promote(self, *, from_start: bool) -> bool:
        """Promote a batch. Returns whether a run may have become pending."""
        looked_at = await self._faults.isolate(
            lambda limit, passing_over: self._store.join_key_queue(
                limit, from_start=from_start, passing_over=passing_over
            ),
            self._join_key_queue,
            self._took,
        )
        passed_over = self._faults.passed_over
        promoted = await self._faults.isolate(
            lambda limit, passing_over: self._store.promote(limit, from_start=from_start, passing_over=passing_over),
            self._promotion,
            self._took,
        )
        self._faults.passed_over += passed_over
        return looked_at + promoted > 0

    async def _sweep(self) -> None:
        if time.monotonic() >= self._swept_at + _SWEEP_SECONDS:
            self._swept_at = time.monotonic()
            limit = self._swept.rows
            with self._swept.smaller_if_interrupted(limit):
                self._swept_to = await self._store.sweep_keys(self._swept_to, limit)
            self._swept.succeeded(limit, seconds=self._took())

    def _took(self) -> float:
        """How long the statement that has just returned took."""
        return time.monotonic() - self._store.commit_sent_at

    async def _sleep(self) -> None:
        # Under a stream of hints there are commits between two looks, too.
        self._next_look = max(self._next_look, time.monotonic() + _SHORTEST_PAUSE)
        while (left := self._next_look - time.monotonic()) > 0:
            self._hinted.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hinted.wait(), left)
