"""Removes finished runs whose keep has passed, with their attempts."""

import asyncio
import random
import time

from underway.postgres.store import Store
from underway.supervisor.batch import Batch
from underway.supervisor.faults import FAILED, Faults

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
        from_start = True
        while True:
            pause = _PERIOD * random.uniform(0.8, 1.2)  # noqa: S311 - a fleet need not look in step
            try:
                from_start = await self._expire(from_start=from_start)
                if not from_start:
                    pause = _PAUSE
            except FAILED as error:
                self._faults.note(error)
            await asyncio.sleep(pause)

    async def _expire(self, *, from_start: bool) -> bool:
        """Remove a batch. Returns whether nothing more is left to remove for now."""
        limit = self._batch.rows
        removed = await self._faults.isolate(
            lambda limit, passing_over: self._store.expire(limit, from_start=from_start, passing_over=passing_over),
            self._batch,
            lambda: time.monotonic() - self._store.commit_sent_at,
        )
        return removed < limit
