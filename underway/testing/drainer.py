"""`drain`: claim, run and commit in this process, as a supervisor and its workers do, until nothing is claimable."""

import asyncio
import socket
import time
from contextlib import closing
from typing import Any
from uuid import uuid4

from underway.app import Underway
from underway.client.database import Database
from underway.client.job import Job
from underway.definition.manifest import Manifest
from underway.errors import UnderwayError
from underway.guardian import lease_clock
from underway.ids import new_id
from underway.postgres import schedule_queries
from underway.postgres.reconnecting import ReconnectingConnection
from underway.postgres.supervisor_store import Lanes, Store
from underway.postgres.transitions import AdvanceRun, Attempt, FinishRun
from underway.schedule.cron import Cron, due
from underway.supervisor.tasks.task import Task, from_claim
from underway.supervisor.tasks.verdict import Observation, decide
from underway.testing.database import refuse_event_loop
from underway.testing.local_worker import LocalWorker
from underway.wire.messages import Welcome

_BATCH = 500
_LOCKED_PAUSE = 0.01
_LOCKED_SECONDS = 5.0


def drain(work: Underway | Job[Any, Any, Any, Any], *, database: str | None = None, most: int = 1000) -> int:
    """Run everything that is claimable of an app, or of one job, in this process; returns the number of attempts.

    It uses a supervisor's statements, so it registers, claims, commits, promotes, reaps, fires schedules and removes
    finished runs as a supervisor does. It waits for nothing: delayed runs and runs in backoff stay (see `advance`).
    Timeouts and memory limits are not enforced.

    The database defaults to the app's. Raises UnderwayError if there is still work after `most` attempts, and the
    errors of the app's own calls if the database cannot be reached or is not migrated.
    """
    refuse_event_loop("drain")
    registry = work.registry
    jobs = list(registry.jobs.values()) if isinstance(work, Underway) else [work]
    url = Database(database or registry.database.url).checked_conninfo()
    manifest = Manifest(tuple(job.manifest() for job in jobs), queues=tuple(registry.queues.values()))
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner, closing(LocalWorker(registry)) as worker:
        supervisor = _LocalSupervisor(url, manifest, worker)
        try:
            runner.run(supervisor.register())
            attempts = 0
            # Steps run outside this event loop, because an async step runs on a loop of its own.
            while (task := runner.run(supervisor.next_task())) is not None:
                if attempts == most:
                    runner.run(supervisor.release(task))
                    raise UnderwayError(f"drain has made {most:,} attempts, and there is still work to do")
                runner.run(supervisor.write(task, *worker.run(task)))
                attempts += 1
            return attempts
        finally:
            runner.run(supervisor.close())


class _LocalSupervisor:
    """The database work of a supervisor that has one worker and takes one task at a time."""

    def __init__(self, url: str, manifest: Manifest, worker: LocalWorker) -> None:
        self._manifest = manifest
        self._steps = dict(manifest.lanes())
        self._lanes = Lanes((lane, step.policy) for lane, step in self._steps.items())
        self._rng = worker.rng
        self._work, self._leases = ReconnectingConnection(url), ReconnectingConnection(url)
        owner, host = uuid4(), socket.gethostname()
        self._store = Store(self._work, self._leases, owner, host)
        worker.transactions.welcome = Welcome(str(owner), host, url)

    async def register(self) -> None:
        """Register the app's jobs and queues first: without queues, failed runs would get no dead-letter labels."""
        await self._store.register_app(self._manifest)

    async def next_task(self) -> Task | None:
        """The next task; None if nothing is claimable and nothing is due."""
        while True:
            leased_from = lease_clock.now()
            for claimed in await self._store.claim(self._lanes, 1, candidates=1, suspects=1):
                return from_claim(claimed, self._steps[claimed.lane], leased_from)
            if not await self._make_claimable():
                return None

    async def _make_claimable(self) -> bool:
        """Do the work of a supervisor's other loops; returns whether it may have made a run claimable."""
        while await self._store.expire(_BATCH):
            pass
        changes = [
            len(await self._store.reap(_BATCH)),
            await self._fire_schedules(),
            await self._store.join_key_queue(_BATCH),
            await self._store.promote(_BATCH),
        ]
        return any(changes)

    async def _fire_schedules(self) -> int:
        """Returns how many schedules have moved on to another slot."""
        first_steps = {job.name: job.steps[0] for job in self._manifest.jobs}
        moved = 0
        for schedule in await schedule_queries.upcoming(self._work, list(first_steps), 0):
            cron, first = Cron(schedule.cron, schedule.zone), first_steps[schedule.job]
            slots, following = due(cron, schedule.catch_up, schedule.next_at, schedule.now, _BATCH)
            runs = [(new_id(), slot) for slot in slots]
            enqueued = await schedule_queries.fire(self._work, schedule, runs, following, first.name, first.placement)
            moved += enqueued is not None
        return moved

    async def write(self, task: Task, row: FinishRun | AdvanceRun | None, spawned: list[dict[str, Any]]) -> None:
        """Make the end of an attempt durable. If the run has been taken from us, it is dropped, as the fence does."""
        deadline = time.monotonic() + _LOCKED_SECONDS
        while row is not None and task.token not in await self._commit(row, spawned):
            owned = await self._store.owned([task.run])
            if (task.run, task.token) not in owned:
                return
            if owned[task.run, task.token]:
                attempt = row.attempt._replace(outcome="cancelled", error="cancelled before its end was written")
                row, spawned = decide(task, Observation.CANCELLED, attempt, self._rng), []
            elif time.monotonic() > deadline:
                raise UnderwayError(f"run {task.run} is locked by another transaction: end it before you drain")
            else:
                await asyncio.sleep(_LOCKED_PAUSE)

    async def _commit(self, row: FinishRun | AdvanceRun, spawned: list[dict[str, Any]]) -> set[int]:
        if isinstance(row, FinishRun):
            return await self._store.finish([row], spawned)
        return set(await self._store.continue_([row], spawned))

    async def release(self, task: Task) -> None:
        """Release the tasks that were claimed and not started."""
        await self.write(task, decide(task, Observation.NEVER_STARTED, Attempt("released"), self._rng), [])

    async def close(self) -> None:
        await self._work.close()
        await self._leases.close()
