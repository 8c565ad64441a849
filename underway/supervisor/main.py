"""A supervisor's life: boot the workers, open the database, serve, leave nothing behind."""

import asyncio
import gc
import os
import socket
import sys
import threading
from collections.abc import Awaitable
from dataclasses import dataclass, field
from logging import getLogger
from typing import TypeVar
from uuid import uuid4

from underway.definition.manifest import Manifest
from underway.errors import EmbeddedPostgresError, InvalidOption, NoDatabase, SchemaError
from underway.linux import become_subreaper
from underway.postgres.connection import conninfo, label
from underway.postgres.reconnecting import DatabaseUnavailable, ReconnectingConnection
from underway.postgres.supervisor_store import Store
from underway.supervisor.exit_codes import ExitCode
from underway.supervisor.logs.output_quota import OUTPUT_LIMIT
from underway.supervisor.service import Service
from underway.supervisor.shutdown import StopRequest, until_unheard
from underway.supervisor.temporary_folders import remove_leftovers
from underway.supervisor.workers.boot import BootError
from underway.supervisor.workers.pool import WorkerPool
from underway.supervisor.workers.recycle import NO_LIMITS, RecycleLimits
from underway.wire import messages

log = getLogger("underway.supervisor")

_T = TypeVar("_T")
# Claimed tasks are not garbage, and a thousand of them must not start a search for it.
_GC_THRESHOLD = 20_000


@dataclass(frozen=True, slots=True)
class Settings:
    """`grace` is in seconds: how long a stop waits for running steps before it interrupts them."""

    app: str
    procs: int
    database: str | None = field(default=None, repr=False)  # may hold a password
    grace: float = 30.0
    until_idle: bool = False
    recycle_limits: RecycleLimits = NO_LIMITS
    output_limit: int = OUTPUT_LIMIT  # bytes of output and log records per attempt


def supervise(settings: Settings) -> int:
    """Run a supervisor until it is told to stop; returns its exit code."""
    return asyncio.run(_live(settings))


async def _live(settings: Settings) -> ExitCode:
    life = _Life(settings)
    try:
        return await life.run()
    except _Stopped:
        return ExitCode.CLEAN
    except BootError as error:
        log.error("%s does not boot: %s", settings.app, error)
        return ExitCode.APP_DOES_NOT_BOOT
    except SchemaError as error:
        log.error("%s", error)
        return ExitCode.SCHEMA_DOES_NOT_FIT
    except (NoDatabase, InvalidOption) as error:
        log.error("%s", error)
        return ExitCode.USAGE
    except (DatabaseUnavailable, EmbeddedPostgresError) as error:
        log.error("cannot connect to the database: %s", error)
        return ExitCode.DATABASE_UNREACHABLE
    finally:
        await life.end()


class _Stopped(Exception):
    """The supervisor was told to stop before it served."""


class _Life:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # New at every start: a host name and a pid may be used again, and their earlier runs are not ours.
        self._id = uuid4()
        self._pool = WorkerPool(
            settings.app, settings.procs, str(self._id), settings.recycle_limits, settings.output_limit
        )
        self._connections: list[ReconnectingConnection] = []
        self._stop = StopRequest()
        self._stop.listen(on_reload=self._pool.reload)

    async def run(self) -> ExitCode:
        threading.Thread(target=remove_leftovers, daemon=True).start()
        database = self._database(await self._boot())
        url = conninfo(database)
        service = await self._connect(url)
        # Not earlier: an embedded Postgres that was started just now must not become a child of ours.
        self._pool.descendants.ignore_existing_children()
        _adopt_orphans()
        self._pool.welcome(messages.Welcome(str(self._id), socket.gethostname(), url))
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD)
        return await self._serve(service, label(database))

    async def _boot(self) -> Manifest:
        self._pool.start()
        try:
            manifest = await self._unless_stopped(self._pool.first_manifest)
        except BootError as error:
            if error.terminated:
                await self._unless_stopped(until_unheard())
            raise
        if not manifest.jobs:
            log.warning(
                "%s declares no jobs: import the modules that declare them in the module of the app", self._settings.app
            )
        return manifest

    def _database(self, manifest: Manifest) -> str:
        database = manifest.database if self._settings.database is None else self._settings.database
        if database is None:
            raise NoDatabase
        return database

    async def _connect(self, url: str) -> Service:
        work, leases = self._connections = [ReconnectingConnection(url), ReconnectingConnection(url)]
        # Before they connect: the store has each new connection check the token sequence.
        store = Store(work, leases, self._id, socket.gethostname())
        for connection in self._connections:
            await self._unless_stopped(connection.open())
        return Service(self._settings.app, self._pool, store, work, leases, self._stop)

    async def _serve(self, service: Service, database: str) -> ExitCode:
        app, procs = self._settings.app, self._settings.procs

        def say_so() -> None:
            log.info("serving %s from %s with %d workers", app, database, procs,
                     extra={"about": {"supervisor": str(self._id)[:8], "pid": os.getpid()}})  # fmt: skip

        clean = await service.serve(grace=self._settings.grace, until_idle=self._settings.until_idle, on_serving=say_so)
        code = ExitCode.CLEAN if clean else ExitCode.KILLED_WORK
        log.info("stopped, exit code %d", code)
        return code

    async def end(self) -> None:
        await self._pool.kill_all()
        for connection in self._connections:
            await connection.close()
        self._stop.end_listening()

    async def _unless_stopped(self, something: Awaitable[_T]) -> _T:
        """Wait for it. Raises _Stopped if the supervisor is told to stop before it is there."""
        wanted = asyncio.ensure_future(something)
        told = asyncio.ensure_future(self._stop.draining.wait())
        await asyncio.wait([wanted, told], return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        if not wanted.done():
            wanted.cancel()
            raise _Stopped
        return wanted.result()


def _adopt_orphans() -> None:
    """Orphans of our workers come to us instead of to init, so that we can find and kill them."""
    if not become_subreaper():
        log.warning("no subreaper on %s: what a dead worker has started may survive it", sys.platform)
