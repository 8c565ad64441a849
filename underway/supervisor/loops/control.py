"""Handles requests to a running supervisor: cancel a run, pause a queue, stop."""

import asyncio
import contextlib
from collections.abc import Callable
from logging import getLogger

from underway.postgres.supervisor_store import Store
from underway.supervisor.loops.cancel import Cancels
from underway.supervisor.loops.errors import FAILED, LoopErrors
from underway.supervisor.loops.pause import Pauses
from underway.supervisor.shutdown import StopRequest

log = getLogger("underway.supervisor")

# What a notification says in place of a queue; "" is said for whatever may have been missed.
_PAYLOADS = ("", "cancel", "pause", "shutdown")
_POLL_SECONDS = 5.0
_POLL_SECONDS_DEAF = 1.0
_SOON_SECONDS = 0.05


class Requests:
    """Woken by notifications; polls behind that."""

    def __init__(
        self, store: Store, cancels: Cancels, pauses: Pauses, stop: StopRequest, *, listening: Callable[[], bool]
    ) -> None:
        self._store = store
        self._cancels = cancels
        self._pauses = pauses
        self._stop = stop
        self._listening = listening
        self._faults = LoopErrors("reading requests")
        self._woken = asyncio.Event()

    def hear(self, payload: str) -> None:
        # A notification whose payload is a queue's name may mean that the queue was resumed.
        if payload in _PAYLOADS or payload in self._pauses.queues:
            self._woken.set()

    async def run(self) -> None:
        while True:
            self._woken.clear()
            pause = _POLL_SECONDS if self._listening() else _POLL_SECONDS_DEAF
            try:
                if not await self._cancels.look():
                    pause = _SOON_SECONDS
                await self._pauses.look()
                if not self._stop.draining.is_set() and await self._store.stop_requested():
                    log.info("asked to stop: finishing what runs, claiming nothing more")
                    self._stop.drain()
            except FAILED as error:
                self._faults.note(error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), pause)
