"""Terminates transactions that steps have left open in Postgres: a query does not end with the worker that waits."""

import asyncio
import math
from collections.abc import Iterable
from logging import getLogger

from underway.postgres.supervisor_store import Store
from underway.supervisor.loops.loop import DATABASE_ERRORS, Loop

log = getLogger("underway.supervisor")

_MOST_TRIES = 10


class BackendLoop(Loop):
    """Terminates backends in which `cx.tx` of an ended attempt is still open, so that they release their locks.

    This only saves time: the fence decides whether the attempt has handed over.
    """

    def __init__(self, store: Store) -> None:
        super().__init__("terminating transactions of dead workers")
        self._store = store
        self._tokens: set[int] = set()
        self._tries = 0
        self._none_left = asyncio.Event()
        self._none_left.set()

    def terminate(self, tokens: Iterable[int]) -> None:
        self._tokens.update(tokens)
        if self._tokens:
            self._none_left.clear()
            self.wake()

    async def turn(self) -> float:
        if tokens := set(self._tokens):
            try:
                await self._store.terminate(tokens)
            except DATABASE_ERRORS as error:
                self._tries += 1
                if self._tries < _MOST_TRIES:
                    return 0.0
                log.error("transactions of dead workers may still be open: %s", error)
            self._tries = 0
            self._tokens -= tokens
        if self._tokens:
            return 0.0
        self._none_left.set()
        return math.inf

    async def flushed(self) -> None:
        """Wait until all of them were asked to end."""
        await self._none_left.wait()
