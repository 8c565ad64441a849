"""Removes finished runs whose keep has passed, with their attempts."""

import asyncio
import random
from logging import getLogger

from underway.postgres.session import DatabaseAway
from underway.postgres.store import Store

log = getLogger("underway.supervisor")

_LIMIT = 500
_PERIOD = 60.0
# Commits go on between two batches.
_PAUSE = 0.1


class Retention:
    """Any supervisor does it; SKIP LOCKED decides which."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def run(self) -> None:
        from_head = True
        while True:
            pause = _PERIOD * random.uniform(0.8, 1.2)  # noqa: S311 - a fleet need not look in step
            try:
                from_head = await self._store.expire(_LIMIT, from_head=from_head) < _LIMIT
                if not from_head:
                    pause = _PAUSE
            except DatabaseAway as error:
                log.warning("retention interrupted: %s", error)
            await asyncio.sleep(pause)
