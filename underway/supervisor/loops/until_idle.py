"""For --until-idle: stops the supervisor when no work is left."""

import contextlib
import math
from logging import getLogger

from underway.postgres.supervisor_store import Store
from underway.supervisor.loops.commit import CommitLoop
from underway.supervisor.loops.loop import DATABASE_ERRORS, Loop
from underway.supervisor.shutdown import StopRequest
from underway.supervisor.tasks.held import HeldTasks
from underway.supervisor.workers.pool import WorkerPool

log = getLogger("underway.supervisor")


class UntilIdleLoop(Loop):
    """Woken by claims that find nothing."""

    def __init__(self, store: Store, pool: WorkerPool, held: HeldTasks, commits: CommitLoop, stop: StopRequest) -> None:
        super().__init__("looking for work that is left")
        self._store = store
        self._pool = pool
        self._held = held
        self._commits = commits
        self._stop = stop
        self._nothing_claimed = False

    def nothing_claimed(self) -> None:
        self._nothing_claimed = True
        self.wake()

    async def turn(self) -> float:
        if self._nothing_claimed:
            self._nothing_claimed = False
            if not self._held and not self._commits.uncommitted():
                with contextlib.suppress(*DATABASE_ERRORS):
                    await self._stop_if_idle()
        return math.inf

    async def _stop_if_idle(self) -> None:
        assert self._pool.manifest is not None
        if not await self._store.has_work([job.name for job in self._pool.manifest.jobs]):
            log.info("nothing left to do")
            self._stop.drain()
