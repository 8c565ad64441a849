"""Declares in the database that this supervisor is idle, so that those who enqueue notify it."""

import contextlib
from collections.abc import Set

from underway.postgres.supervisor_store import Store
from underway.supervisor.loops.loop import DATABASE_ERRORS

# After this many claims in a row that got all they asked for, there is a backlog.
BACKLOG_CLAIMS = 5


class IdleDeclaration:
    """Names only the served queues: transactions that NOTIFY commit one after another, whether it is useful or not.

    The declaration stays while there is little to do. It is withdrawn under a backlog, where a NOTIFY per transaction
    would only slow down those who enqueue.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._declared = False
        self._queues: Set[str] = frozenset()
        self._full_claims = 0

    def serve(self, queues: Set[str]) -> None:
        """These queues are served now. An earlier declaration does not cover a new one."""
        if not queues <= self._queues:
            self._declared = False
        self._queues = queues

    def forget(self) -> None:
        """The row of this supervisor was written anew, without the declaration."""
        self._declared = False

    async def declare(self) -> bool:
        """Returns whether it was declared just now. Then claim once more: enqueuers before this did not know of it."""
        if self._declared:
            return False
        try:
            await self._store.set_idle(True, set(self._queues))
        except DATABASE_ERRORS:
            return False
        self._declared = True
        return True

    async def claimed(self, *, got_all: bool) -> None:
        """Withdraw the declaration if there is a backlog."""
        self._full_claims = self._full_claims + 1 if got_all else 0
        if self._declared and self._full_claims > BACKLOG_CLAIMS:
            self._declared = False
            with contextlib.suppress(*DATABASE_ERRORS):
                await self._store.set_idle(False)
