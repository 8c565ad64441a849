"""What people see of a supervisor in Postgres: its row."""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from logging import getLogger

from underway.manifest import Lane, Manifest, Step
from underway.postgres.session import Session
from underway.postgres.store import Store
from underway.supervisor.crew import Crew
from underway.supervisor.faults import FAILED, Faults

log = getLogger("underway.supervisor")

_LABEL_SECONDS = 60.0
# After six missed updates the supervisor counts as silent: see list_supervisors.
_SEEN_SECONDS = 5.0


class Labels:
    """Writes the supervisor's row and its app's registrations, for information only.

    They are written again every minute, after the database was unavailable or has lost them, and when the workers' code
    has changed or no worker is booted any more.
    """

    def __init__(self, store: Store, work: Session, app: str, crew: Crew, *, on_label: Callable[[], None]) -> None:
        self._store = store
        self._work = work
        self._app = app
        self._crew = crew
        self._on_label = on_label
        self._faults = Faults("registering the supervisor and its app")
        self._stranded: set[Lane] = set()
        self._written: object = None
        self.known = asyncio.Event()  # what Postgres has to know of the app, before anything of it runs

    async def write(self) -> None:
        manifest, lanes, trouble = written = self._what_is()
        assert manifest is not None
        await self._store.register(pid=os.getpid(), app=self._app, lanes=lanes, trouble=trouble)
        await self._store.register_app(manifest)
        self._written = written
        self.known.set()
        self._on_label()

    def _what_is(self) -> tuple[Manifest | None, dict[Lane, Step], str]:
        return self._crew.manifest, self._crew.lanes, self._crew.trouble

    async def run(self) -> None:
        while True:
            try:
                await self.write()
                await self._store.forget_supervisors()
                await self._warn_of_stranded()
            except FAILED as error:
                self._faults.note(error)
                # Perhaps a row that has changed is locked, for a second each time: commits need the connection too.
                await asyncio.sleep(1)
            await self._rest()

    async def _rest(self) -> None:
        """Update seen_at every few seconds, until the row must be written again."""
        opened, written_at = self._work.opened, time.monotonic()
        seen_at = written_at
        while self._work.opened == opened and self._written == self._what_is():
            await asyncio.sleep(1)
            now = time.monotonic()
            if now >= written_at + _LABEL_SECONDS:
                return
            if now >= seen_at + _SEEN_SECONDS:
                seen_at = now
                with contextlib.suppress(*FAILED):
                    if not await self._store.still_here():
                        return

    async def _warn_of_stranded(self) -> None:
        stranded = set(await self._store.stranded_lanes())
        for lane in sorted(stranded - self._stranded):
            log.warning(
                "no supervisor serves step %r of job %r in queue %r, where runs have been pending for a minute",
                lane.step, lane.job, lane.queue,
            )  # fmt: skip
        self._stranded = stranded
