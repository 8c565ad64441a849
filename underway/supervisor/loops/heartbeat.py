"""Writes this supervisor's row in Postgres, which commands and dashboards show."""

import asyncio
import contextlib
import os
import time
from dataclasses import dataclass
from logging import getLogger

from underway.definition.manifest import Lane, Manifest, Step
from underway.postgres.reconnecting import ReconnectingConnection
from underway.postgres.supervisor_store import Store
from underway.supervisor.loops.loop import DATABASE_ERRORS, Loop
from underway.supervisor.signals import Signals
from underway.supervisor.workers.pool import WorkerPool

log = getLogger("underway.supervisor")

_REGISTER_SECONDS = 60.0
# After six missed updates the supervisor counts as silent: see list_supervisors.
_SEEN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Registration:
    """What the rows say. They are written again when it changes."""

    manifest: Manifest | None
    lanes: dict[Lane, Step]
    trouble: str


class HeartbeatLoop(Loop):
    """Writes the supervisor's row and its app's registrations, for information only.

    They are written again every minute, after the database was unavailable or has lost them, and when the workers' code
    has changed or workers do not boot any more.
    """

    def __init__(
        self, store: Store, work: ReconnectingConnection, app: str, pool: WorkerPool, signals: Signals
    ) -> None:
        super().__init__("registering the supervisor and its app")
        self._store = store
        self._work = work
        self._app = app
        self._pool = pool
        self._signals = signals
        self._stranded: set[Lane] = set()
        self._written: Registration | None = None
        # No run starts before this: the end of a run looks up its queue's dead-letter label.
        self.registered = asyncio.Event()

    async def turn(self) -> float:
        await self._until_outdated()
        await self.write()
        await self._store.forget_supervisors()
        await self._warn_of_stranded()
        return 0.0

    def failed(self) -> float:
        # Perhaps a row that has changed is locked, for a second each time: commits need the connection too.
        return 1.0

    async def write(self) -> None:
        current = self._current()
        assert current.manifest is not None
        await self._store.register(pid=os.getpid(), app=self._app, lanes=current.lanes, trouble=current.trouble)
        await self._store.register_app(current.manifest)
        self._written = current
        self.registered.set()
        self._signals.registered()

    def _current(self) -> Registration:
        return Registration(self._pool.manifest, self._pool.roster.lanes, self._pool.trouble)

    async def _until_outdated(self) -> None:
        """Update seen_at every few seconds, until the row must be written again."""
        opened, written_at = self._work.opened, time.monotonic()
        seen_at = written_at
        while self._work.opened == opened and self._written == self._current():
            await asyncio.sleep(1)
            now = time.monotonic()
            if now >= written_at + _REGISTER_SECONDS:
                return
            if now >= seen_at + _SEEN_SECONDS:
                seen_at = now
                with contextlib.suppress(*DATABASE_ERRORS):
                    if not await self._store.heartbeat():
                        return

    async def _warn_of_stranded(self) -> None:
        stranded = set(await self._store.stranded_lanes())
        for lane in sorted(stranded - self._stranded):
            log.warning(
                "no supervisor serves step %r of job %r in queue %r, where runs have been pending for a minute",
                lane.step, lane.job, lane.queue,
            )  # fmt: skip
        self._stranded = stranded
