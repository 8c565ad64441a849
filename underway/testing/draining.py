"""A supervisor's loop without a supervisor: claim, run in this process, commit, until nothing is left to claim."""

import asyncio
import socket
import time
from contextlib import closing
from typing import Any
from uuid import uuid4

from underway import lease_clock, wire
from underway.app import Underway
from underway.errors import UnderwayError
from underway.ids import new_id
from underway.job import Job
from underway.manifest import Manifest
from underway.postgres import schedules
from underway.postgres.endings import Attempt, Continue, Finish
from underway.postgres.session import Session
from underway.postgres.store import Lanes, Store
from underway.schedule import Cron, due
from underway.supervisor.task import Task, from_claim
from underway.supervisor.verdict import Seen, settle
from underway.testing.database import refuse_event_loop
from underway.testing.process import LocalWorker

_BATCH = 500
_LOCKED_PAUSE = 0.01
_LOCKED_SECONDS = 5.0


def drain(work: Underway | Job[Any, Any, Any, Any], *, database: str | None = None, most: int = 1000) -> int:
    """Run whatever is claimable of an app, or of one job, in this process; returns how many attempts were made.

    It uses a supervisor's statements, so it registers, claims, commits, promotes, reaps, fires schedules and removes
    finished runs as a supervisor does. It waits for nothing: delayed runs and runs in backoff stay (see `advance`).
    Timeouts and memory limits are not enforced.

    The database is the app's unless named. Raises UnderwayError if there is still work after `most` attempts, and what
    the app's own calls raise for a database that is not there or not migrated.
    """
    refuse_event_loop("drain")
    app, jobs = (work, list(work.jobs.values())) if isinstance(work, Underway) else (work._app, [work])
    url = Underway(database or app.database)._checked_url()
    manifest = Manifest(tuple(job.manifest() for job in jobs), queues=tuple(app._queues.values()))
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner, closing(LocalWorker(app)) as worker:
        queue = _Queue(url, manifest, worker)
        try:
            runner.run(queue.register())
            made = 0
            # Steps run outside of the loop: they may have one of their own.
            while (task := runner.run(queue.next())) is not None:
                if made == most:
                    runner.run(queue.release(task))
                    raise UnderwayError(f"drain has made {most:,} attempts, and there is still work to do")
                runner.run(queue.write(task, *worker.run(task)))
                made += 1
            return made
        finally:
            runner.run(queue.close())


class _Queue:
    """The database as a supervisor sees it that has one worker and takes one task at a time."""

    def __init__(self, url: str, manifest: Manifest, worker: LocalWorker) -> None:
        self._manifest = manifest
        self._steps = dict(manifest.lanes())
        self._lanes = Lanes((lane, step.policy) for lane, step in self._steps.items())
        self._rng = worker.rng
        self._work, self._leases = Session(url), Session(url)
        owner, host = uuid4(), socket.gethostname()
        self._store = Store(self._work, self._leases, owner, host)
        worker.executor.transactions.welcome = wire.Welcome(str(owner), host, url)

    async def register(self) -> None:
        """Register the app's jobs and queues first: without queues, failed runs would get no dead-letter labels."""
        await self._store.register_app(self._manifest)

    async def next(self) -> Task | None:
        """The next task; None when there is none, and none comes due."""
        while True:
            leased_from = lease_clock.now()
            for claimed in await self._store.claim(self._lanes, 1, candidates=1, suspects=1):
                return from_claim(claimed, self._steps[claimed.lane], leased_from)
            if not await self._bring_about():
                return None

    async def _bring_about(self) -> bool:
        """What supervisors do beside claiming; whether some of it may have made something claimable."""
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
        """How many now wait for another slot."""
        first_steps = {job.name: job.steps[0] for job in self._manifest.jobs}
        moved = 0
        for schedule in await schedules.upcoming(self._work, list(first_steps), 0):
            cron, first = Cron(schedule.cron, schedule.zone), first_steps[schedule.job]
            slots, following = due(cron, schedule.catch_up, schedule.next_at, schedule.now, _BATCH)
            runs = [(new_id(), slot) for slot in slots]
            enqueued = await schedules.fire(self._work, schedule, runs, following, first.name, first.placement)
            moved += enqueued is not None
        return moved

    async def write(self, task: Task, row: Finish | Continue | None, spawned: list[dict[str, Any]]) -> None:
        """Make an ending durable. One whose run was taken from us is dropped, as the fence would have it."""
        deadline = time.monotonic() + _LOCKED_SECONDS
        while row is not None and task.token not in await self._commit(row, spawned):
            owned = await self._store.owned([task.run])
            if (task.run, task.token) not in owned:
                return
            if owned[task.run, task.token]:
                attempt = row.attempt._replace(outcome="cancelled", error="cancelled before its end was written")
                row, spawned = settle(task, Seen.CANCELLED, attempt, self._rng), []
            elif time.monotonic() > deadline:
                raise UnderwayError(f"run {task.run} is locked by another transaction: end it before you drain")
            else:
                await asyncio.sleep(_LOCKED_PAUSE)

    async def _commit(self, row: Finish | Continue, spawned: list[dict[str, Any]]) -> set[int]:
        if isinstance(row, Finish):
            return await self._store.finish([row], spawned)
        return set(await self._store.continue_([row], spawned))

    async def release(self, task: Task) -> None:
        """Give back what was claimed and not begun."""
        await self.write(task, settle(task, Seen.NEVER_STARTED, Attempt("released"), self._rng), [])

    async def close(self) -> None:
        await self._work.close()
        await self._leases.close()
