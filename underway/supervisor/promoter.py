"""Makes waiting runs pending when they are due; asleep until the earliest of them."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from logging import getLogger

from underway.postgres.session import DatabaseAway
from underway.postgres.store import Store

log = getLogger("underway.supervisor")

_LIMIT = 1000
_POLL_SECONDS = 1.0
# A due row that somebody has locked must not make a busy loop.
_SHORTEST_PAUSE = 0.01


class Promoter:
    """Any supervisor promotes; SKIP LOCKED decides which."""

    def __init__(self, store: Store, *, on_promoted: Callable[[], None]) -> None:
        self._store = store
        self._on_promoted = on_promoted
        self._hinted = asyncio.Event()
        self._next_look = 0.0

    def hint(self, delay: float) -> None:
        """A run will be due in this many seconds."""
        at = time.monotonic() + delay
        if at < self._next_look:
            self._next_look = at
            self._hinted.set()

    async def run(self) -> None:
        while True:
            pause = _POLL_SECONDS
            try:
                if await self._store.promote(_LIMIT):
                    self._on_promoted()
                due = await self._store.seconds_until_due()
                if due is not None:
                    pause = min(max(due, _SHORTEST_PAUSE), _POLL_SECONDS)
            except DatabaseAway as error:
                log.warning("promotion interrupted: %s", error)
            await self._sleep(pause)

    async def _sleep(self, seconds: float) -> None:
        self._next_look = time.monotonic() + seconds
        while (left := self._next_look - time.monotonic()) > 0:
            self._hinted.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hinted.wait(), left)
