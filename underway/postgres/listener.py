"""LISTEN on a session's connection: a hint that there is work, with polling behind it."""

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from logging import getLogger

from underway.postgres.reconnecting import ReconnectingConnection

log = getLogger("underway.postgres")

_ECHO_SECONDS = 2.0


class Wakeup:
    """Hears notifications on a session that is used for statements too.

    At each new connection it sends itself a nonce: behind pgbouncer in transaction mode LISTEN seems to work and
    nothing ever arrives, so without the echo it says `listening = False`, and whoever relies on it has to poll.

    `on_notify` is given the payload: the queue of new runs, `cancel`, `shutdown`, or "" for whatever was missed.
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
        """Listen if the connection is a new one, without waiting for the echo. Raises DatabaseUnavailable."""
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
        self._on_notify("")  # whatever was notified while we were deaf

    def _expect_echo(self, nonce: str) -> None:
        if nonce == self._nonce and not self.listening:
            log.warning("notifications do not arrive (a pooler in transaction mode?): polling instead")

    async def rest(self, seconds: float) -> None:
        """Let this time pass; less if the connection breaks."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._broken.wait()
                self._broken.clear()

    def _heard(self, payload: str) -> None:
        if payload == self._nonce:
            self.listening = True
        else:
            self._on_notify(payload)
