"""Removes finished runs whose retention has passed, with their attempts."""

import random
import time

from underway.postgres.supervisor_store import Store
from underway.supervisor.loops.adaptive_batch import AdaptiveBatch
from underway.supervisor.loops.loop import Loop

_LIMIT = 500
_PERIOD = 60.0
# Commits use the connection between two batches.
_PAUSE = 0.1


class RetentionLoop(Loop):
    """Every supervisor does it; SKIP LOCKED shares the rows between them."""

    def __init__(self, store: Store) -> None:
        super().__init__("retention")
        self._store = store
        self._batch = AdaptiveBatch(_LIMIT)
        self._from_start = True

    async def turn(self) -> float:
        self._from_start = await self._expire(from_start=self._from_start)
        return self.failed() if self._from_start else _PAUSE

    def failed(self) -> float:
        return _PERIOD * random.uniform(0.8, 1.2)  # noqa: S311 - spreads the supervisors of a fleet

    async def _expire(self, *, from_start: bool) -> bool:
        """Remove a batch. Returns whether nothing more is left to remove for now."""
        limit = self._batch.rows
        removed = await self.isolate(
            lambda limit, passing_over: self._store.expire(limit, from_start=from_start, passing_over=passing_over),
            self._batch,
            lambda: time.monotonic() - self._store.commit_sent_at,
        )
        return removed < limit
