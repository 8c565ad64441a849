"""The end of a supervisor's service: finish what runs, then interrupt, then kill; release the rest, charge nobody."""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from logging import getLogger

from underway.postgres.supervisor_store import Store
from underway.supervisor.loops.backends import Backends
from underway.supervisor.loops.commit import Commits
from underway.supervisor.loops.errors import FAILED
from underway.supervisor.shutdown import StopRequest
from underway.supervisor.tasks.dispatch import Dispatch
from underway.supervisor.tasks.results import ResultHandler
from underway.supervisor.tasks.task import Task
from underway.supervisor.tasks.verdict import Observation
from underway.supervisor.workers.limits import CLEANUP_SECONDS, about_task, interrupt
from underway.supervisor.workers.pool import WorkerPool
from underway.supervisor.workers.process import END_SECONDS

log = getLogger("underway.supervisor")

_FLUSH_SECONDS = 10.0
_DEATH_SECONDS = 5.0
_HURRIED_SECONDS = 1.0  # of those, when we are told to stop now
_LABEL_SECONDS = 1.0


class Drain:
    """Takes at most grace + 5 s to clean up + 5 s to die + 12 s to write, while idle workers end; 7 s to stop now."""

    def __init__(
        self,
        crew: WorkerPool,
        dispatch: Dispatch,
        endings: ResultHandler,
        commits: Commits,
        backends: Backends,
        store: Store,
        held: Mapping[int, Task],
        stop: StopRequest,
    ) -> None:
        self._crew = crew
        self._dispatch = dispatch
        self._endings = endings
        self._commits = commits
        self._backends = backends
        self._store = store
        self._held = held
        self._stop = stop

    async def run(self, grace: float) -> bool:
        """Whether it was clean: everything that ran came to its own end, and is durable."""
        self._crew.stop_booting()
        self._dispatch.closed = True
        self._endings.judge_all()
        self._release_waiting()
        finished = await self._stop.settled(self._nothing_runs, grace)
        if not finished and not self._stop.now.is_set():
            self._interrupt()
            await self._stop.settled(self._nothing_runs, CLEANUP_SECONDS)
        if not self._nothing_runs():
            await self._kill()
        # Workers that died of the very signal that told us to stop have not let it finish, either.
        finished = finished and not self._endings.ends[Observation.KILLED_SHUTDOWN]
        # Idle workers exit while the last results are committed. Late ones are killed; a stop "now" kills them at once.
        if not self._stop.now.is_set():
            self._crew.retire_all()
        flushed = await self._flush()
        await self._stop.settled(self._crew.retired, END_SECONDS)
        return flushed and finished

    def _release_waiting(self) -> None:
        for task in self._dispatch.take_all():
            self._endings.release(task)
        for worker in self._crew.active:
            for task in self._dispatch.take_back(worker):
                self._endings.release(task)

    def _nothing_runs(self) -> bool:
        self._release_waiting()  # what a worker has skipped, or left behind
        return not any(worker.tasks for worker in self._crew.active)

    def _interrupt(self) -> None:
        for worker in self._crew.active:
            # One that was interrupted before, for another reason, is cleaning up already.
            if (task := worker.current) is not None and task.stop_sent_at is None:
                log.warning("interrupted: the supervisor stops", extra={"about": about_task(worker, task)})
                interrupt(worker, task, "shutdown", time.monotonic())

    async def _kill(self) -> None:
        for worker in list(self._crew.active):
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
        if not await self._stop.settled(writing.done, _FLUSH_SECONDS):
            await asyncio.wait([writing], timeout=_HURRIED_SECONDS)
        if not writing.done():
            writing.cancel()
            log.error("the database is away: what could not be written is taken back when its leases expire")
            return False
        writing.result()
        # A label that stays behind does no harm, and is no reason to call the stop unclean; and what a last claim or
        # hand-over has taken without our hearing of it comes back with its lease, if not now.
        with contextlib.suppress(TimeoutError, *FAILED):
            async with asyncio.timeout(_LABEL_SECONDS):
                await self._store.release_unknown({task.run for task in self._held.values()})
                await self._store.deregister()
        return True

    async def _written(self) -> None:
        await self._commits.flushed()
        await self._backends.flushed()
