"""Releases runs that this supervisor owns in the database and does not know of."""

import contextlib
import time

from underway.postgres.reconnecting import ANSWER_SECONDS
from underway.postgres.supervisor_store import Store
from underway.supervisor.loops.loop import DATABASE_ERRORS
from underway.supervisor.tasks.held import HeldTasks
from underway.supervisor.workers.pool import WorkerPool


class UnknownRuns:
    """A claim or hand-over whose answer was lost may have taken runs, and a standby that was promoted may show older
    claims of ours. They are released, and charged to no counter.

    An interrupted statement may even take effect later, in a backend that has not noticed yet that the connection is
    gone. So the runs are released before each claim for a while, and never at the same time as one.
    """

    def __init__(self, store: Store, held: HeldTasks, pool: WorkerPool) -> None:
        self._store = store
        self._held = held
        self._pool = pool
        self._until = 0.0

    def expect(self, statement_seconds: float) -> None:
        """A statement with this timeout was interrupted: until its deadline it may still take effect."""
        self._until = time.monotonic() + statement_seconds + ANSWER_SECONDS

    async def release(self) -> None:
        if not self._until:
            return
        with contextlib.suppress(*DATABASE_ERRORS):
            await self._store.release_unknown(self._known())
            if time.monotonic() > self._until:
                self._until = 0.0

    def _known(self) -> set[str]:
        """The held runs, and lost ones while their worker lives: no other supervisor may start those before."""
        return self._held.runs() | {task.run for worker in self._pool.roster.active for task in worker.tasks.values()}
