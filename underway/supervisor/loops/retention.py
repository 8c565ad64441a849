"""Removes finished runs whose keep has passed, with their attempts."""

import asyncio
import random
import time

from underway.postgres.supervisor_store import Store
from underway.supervisor.loops.adaptive_batch import Batch
from underway.supervisor.loops.errors import FAILED, Faults

_LIMIT = 500
_PERIOD = 60.0
# Commits go on between two batches.
_PAUSE = 0.1


class Retention:
    """Any supervisor does it; SKIP LOCKED decides which."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._faults = Faults("retention")
        self._batch = Batch(_LIMIT)

    async def run(self) -> None:
        from_head = True
        while True:
            pause = _PERIOD * random.uniform(0.8, 1.2)  # noqa: S311 - a fleet need not look in step
            try:
                from_head = await self._expire(from_head=from_head)
                if not from_head:
                    pause = _PAUSE
            except FAILED as error:
                self._faults.note(error)
            await asyncio.sleep(pause)

    async def _expire(self, *, from_head: bool) -> bool:
        """Remove a batch. Returns whether nothing more is left to remove for now."""
        limit = self._batch.rows
        removed = await self._faults.isolate(
            lambda limit, passing_over: self._store.expire(limit, from_head=from_head, passing_over=passing_over),
            self._batch,
            lambda: time.monotonic() - self._store.commit_sent_at,
        )
        return removed < limit
