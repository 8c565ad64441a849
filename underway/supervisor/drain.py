"""The end of a supervisor's service: finish what runs, then interrupt, then kill; release the rest."""

import asyncio
import contextlib
import time
from logging import getLogger

from underway.postgres.supervisor_store import Store
from underway.supervisor.loops.backends import BackendLoop
from underway.supervisor.loops.commit import CommitLoop
from underway.supervisor.loops.loop import DATABASE_ERRORS
from underway.supervisor.shutdown import StopRequest
from underway.supervisor.tasks.dispatch import Dispatch
from underway.supervisor.tasks.held import HeldTasks
from underway.supervisor.tasks.results import ResultHandler
from underway.supervisor.tasks.verdict import Observation
from underway.supervisor.workers.limits import CLEANUP_SECONDS, about_task, interrupt
from underway.supervisor.workers.pool import WorkerPool
from underway.supervisor.workers.process import END_SECONDS

log = getLogger("underway.supervisor")

_FLUSH_SECONDS = 10.0
_DEATH_SECONDS = 5.0
_HURRIED_SECONDS = 1.0  # to write, after a request to stop now
_DEREGISTER_SECONDS = 1.0


class Drain:
    """Takes at most the grace period, 5 s to clean up, 5 s to kill and 12 s to write; 7 s for a stop "now"."""

    def __init__(
        self,
        pool: WorkerPool,
        dispatch: Dispatch,
        results: ResultHandler,
        commits: CommitLoop,
        backends: BackendLoop,
        store: Store,
        held: HeldTasks,
        stop: StopRequest,
    ) -> None:
        self._pool = pool
        self._dispatch = dispatch
        self._results = results
        self._commits = commits
        self._backends = backends
        self._store = store
        self._held = held
        self._stop = stop

    async def run(self, grace: float) -> bool:
        """Returns whether it was clean: every running step ended by itself, and everything is durable."""
        self._pool.stop_booting()
        self._dispatch.closed = True
        self._results.judge_all()
        self._release_waiting()
        finished = await self._stop.wait_until(self._nothing_runs, grace)
        if not finished and not self._stop.now.is_set():
            self._interrupt()
            await self._stop.wait_until(self._nothing_runs, CLEANUP_SECONDS)
        if not self._nothing_runs():
            await self._kill()
        # Nor have steps finished whose workers died of the signal that told us to stop.
        finished = finished and not self._results.ends[Observation.KILLED_SHUTDOWN]
        # Idle workers exit while the last results are committed. Late ones are killed; a stop "now" kills them at once.
        if not self._stop.now.is_set():
            self._pool.retire_idle()
        flushed = await self._flush()
        await self._stop.wait_until(lambda: not self._pool.roster.retired, END_SECONDS)
        return flushed and finished

    def _release_waiting(self) -> None:
        for task in self._dispatch.take_all():
            self._results.release(task)
        for worker in self._pool.roster.active:
            for task in self._dispatch.take_back(worker):
                self._results.release(task)

    def _nothing_runs(self) -> bool:
        self._release_waiting()  # what a worker has skipped, or left unstarted
        return not any(worker.tasks for worker in self._pool.roster.active)

    def _interrupt(self) -> None:
        for worker in self._pool.roster.active:
            # A step that was interrupted before, for another reason, is already cleaning up.
            if (task := worker.current) is not None and task.stop_sent_at is None:
                log.warning("interrupted: the supervisor stops", extra={"about": about_task(worker, task)})
                interrupt(worker, task, "shutdown", time.monotonic())

    async def _kill(self) -> None:
        for worker in list(self._pool.roster.active):
            if (task := worker.current) is not None and worker.kill_task(task, Observation.KILLED_SHUTDOWN):
                log.warning("killed: the supervisor stops", extra={"about": about_task(worker, task)})
            elif worker.tasks:
                worker.kill_between_tasks()
        # A task is released only when its worker's death has been seen.
        deadline = time.monotonic() + _DEATH_SECONDS
        while not self._nothing_runs() and time.monotonic() < deadline:
            await asyncio.sleep(0.005)

    async def _flush(self) -> bool:
        writing = asyncio.ensure_future(self._written())
        if not await self._stop.wait_until(writing.done, _FLUSH_SECONDS):
            await asyncio.wait([writing], timeout=_HURRIED_SECONDS)
        if not writing.done():
            writing.cancel()
            log.error("cannot reach the database; what is not recorded is taken back when its leases expire")
            return False
        writing.result()
        # A row of this supervisor that stays behind does no harm, and does not make the stop unclean. Runs that a last
        # claim or hand-over took without our knowledge come back when their leases expire, if not now.
        with contextlib.suppress(TimeoutError, *DATABASE_ERRORS):
            async with asyncio.timeout(_DEREGISTER_SECONDS):
                await self._store.release_unknown(self._held.runs())
                await self._store.deregister()
        return True

    async def _written(self) -> None:
        await self._commits.flushed()
        await self._backends.flushed()
