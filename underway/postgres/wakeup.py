"""LISTEN on a session's connection: a hint that there is work, with polling behind it."""

import asyncio
import random
import secrets
from logging import getLogger

import psycopg

from underway.postgres.queries import statements
from underway.postgres.session import DatabaseAway, Session

log = getLogger("underway.postgres")

_ECHO_SECONDS = 2.0


class Wakeup:
    """Waits for notifications on a session that is used for other statements in between.

    At each new connection it sends itself a nonce: behind pgbouncer in transaction mode LISTEN seems to work and
    nothing ever arrives, so without the echo it says `listening = False` and only waits out its time.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._opened = -1
        self.listening = False

    async def wait(self, seconds: float) -> bool:
        """Whether a notification came within this time."""
        connection = await self._session.open()
        try:
            if self._session.opened != self._opened:
                self.listening = await self._subscribe(connection)
                self._opened = self._session.opened
                return True  # whatever was notified while we were deaf
            if not self.listening:
                await asyncio.sleep(seconds)
                return False
            async for _ in connection.notifies(timeout=seconds, stop_after=1):
                return True
            return False
        except psycopg.Error as error:
            raise DatabaseAway(str(error).strip()) from error

    async def patience(self) -> None:
        """Pause before the next try, without a busy loop while the database is away."""
        await asyncio.sleep(random.uniform(0.1, 0.5))  # noqa: S311 - a fleet must not come back in step

    async def _subscribe(self, connection: psycopg.AsyncConnection[tuple[object, ...]]) -> bool:
        nonce = secrets.token_hex(8)
        await connection.execute(statements()["listen"])
        await connection.execute(statements()["notify_self"], {"nonce": nonce})
        deadline = asyncio.get_running_loop().time() + _ECHO_SECONDS
        while (left := deadline - asyncio.get_running_loop().time()) > 0:
            async for notify in connection.notifies(timeout=left, stop_after=1):
                if notify.payload == nonce:
                    return True
        log.warning("notifications do not arrive (a pooler in transaction mode?): polling instead")
        return False
