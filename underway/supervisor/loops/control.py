"""Handles requests to a running supervisor: cancel a run, pause a queue, stop."""

from logging import getLogger

from underway.postgres.listener import Wakeup
from underway.postgres.supervisor_store import Store
from underway.supervisor.loops.cancel import Cancellation
from underway.supervisor.loops.loop import Loop
from underway.supervisor.loops.pause import PausedQueues
from underway.supervisor.shutdown import StopRequest

log = getLogger("underway.supervisor")

# The payloads of notifications that are not the name of a queue; "" stands for any that may have been missed.
_PAYLOADS = ("", "cancel", "pause", "shutdown")
_POLL_SECONDS = 5.0
_POLL_SECONDS_DEAF = 1.0
_SOON_SECONDS = 0.05


class ControlLoop(Loop):
    """Woken by notifications, and polls in case one was missed."""

    def __init__(
        self, store: Store, cancellation: Cancellation, paused: PausedQueues, stop: StopRequest, wakeup: Wakeup
    ) -> None:
        super().__init__("reading requests")
        self._store = store
        self._cancellation = cancellation
        self._paused = paused
        self._stop = stop
        self._wakeup = wakeup

    def notified(self, payload: str) -> None:
        # A notification whose payload is a queue's name may mean that the queue was resumed.
        if payload in _PAYLOADS or payload in self._paused.queues:
            self.wake()

    async def turn(self) -> float:
        found_all = await self._cancellation.poll()
        await self._paused.poll()
        if not self._stop.draining.is_set() and await self._store.stop_requested():
            log.info("asked to stop: finishing what runs, claiming nothing more")
            self._stop.drain()
        return self._poll_seconds() if found_all else _SOON_SECONDS

    def failed(self) -> float:
        return self._poll_seconds()

    def _poll_seconds(self) -> float:
        return _POLL_SECONDS if self._wakeup.listening else _POLL_SECONDS_DEAF
