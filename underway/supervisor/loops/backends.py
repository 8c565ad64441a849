"""Ends what steps have left running in Postgres: a query does not end with the worker that waits for it."""

import asyncio
from collections.abc import Iterable
from logging import getLogger

from underway.postgres.supervisor_store import Store
from underway.supervisor.loops.errors import FAILED

log = getLogger("underway.supervisor")

_MOST_TRIES = 10


class Backends:
    """Terminates those in which `cx.tx` of an attempt that is over is still open, so that it gives up its locks.

    Nothing depends on it but time: whether the attempt has handed over is decided by the fence.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tokens: set[int] = set()
        self._some = asyncio.Event()
        self._none = asyncio.Event()
        self._none.set()

    def terminate(self, tokens: Iterable[int]) -> None:
        self._tokens.update(tokens)
        if self._tokens:
            self._some.set()
            self._none.clear()

    async def run(self) -> None:
        tries = 0
        while True:
            await self._some.wait()
            tokens = set(self._tokens)
            try:
                await self._store.terminate(tokens)
            except FAILED as error:
                tries += 1
                if tries < _MOST_TRIES:
                    continue
                log.error("transactions of dead workers may still be open: %s", error)
            tries = 0
            self._tokens -= tokens
            if not self._tokens:
                self._some.clear()
                self._none.set()

    async def flushed(self) -> None:
        """Wait until all of them have been told to end."""
        await self._none.wait()
