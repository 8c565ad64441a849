"""LISTEN on a supervisor's connection. A notification is a hint that there is work; polling is the fallback."""

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from logging import getLogger

from underway.postgres.reconnecting import ReconnectingConnection

log = getLogger("underway.postgres")

_ECHO_SECONDS = 2.0


class Wakeup:
    """Receives notifications on a connection that also runs statements.

    On each new connection it sends itself a nonce. Behind pgbouncer in transaction mode LISTEN succeeds, but no
    notification arrives; until the echo arrives `listening` is False, and callers must poll.

    `on_notify` is called with the payload: the queue of new runs, `cancel`, `shutdown`, or "" after a new connection,
    when any notification may have been missed.
    """

    def __init__(self, session: ReconnectingConnection, on_notify: Callable[[str], None]) -> None:
        self._session = session
        self._on_notify = on_notify
        self._opened = -1
        self._nonce = ""
        self._broken = asyncio.Event()
        self.listening = False
        session.on_notify = self._heard
        session.on_broken = self._broken.set

    async def subscribe(self) -> None:
        """Listen if the connection is new; do not wait for the echo. Raises DatabaseUnavailable."""
        await self._session.open()
        if self._session.opened == self._opened:
            return
        opened = self._session.opened
        self.listening = False
        self._nonce = nonce = secrets.token_hex(8)
        await self._session.fetch("listen")
        await self._session.fetch("notify_self", {"nonce": nonce})
        asyncio.get_running_loop().call_later(_ECHO_SECONDS, self._expect_echo, nonce)
        self._opened = opened
        self._on_notify("")  # for notifications that were missed

    def _expect_echo(self, nonce: str) -> None:
        if nonce == self._nonce and not self.listening:
            log.warning("notifications do not arrive (a pooler in transaction mode?): polling instead")

    async def rest(self, seconds: float) -> None:
        """Sleep for this time, or until the connection breaks."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._broken.wait()
                self._broken.clear()

    def _heard(self, payload: str) -> None:
        if payload == self._nonce:
            self.listening = True
        else:
            self._on_notify(payload)
