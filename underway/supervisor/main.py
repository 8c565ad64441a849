"""A supervisor's life: boot the pool, open the database, serve, leave nothing behind."""

import asyncio
import gc
import os
import socket
import sys
import threading
from dataclasses import dataclass, field
from logging import getLogger
from typing import Any
from uuid import uuid4

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


async def _live(settings: Settings) -> int:
    # Its identity is new at every start: a host or a pid may come back, and what it left behind is not ours.
    identity = uuid4()
    pool = WorkerPool(settings.app, settings.procs, str(identity), settings.recycle_limits, settings.output_limit)
    stop = StopRequest()
    stop.listen(on_reload=pool.reload)
    sessions: list[ReconnectingConnection] = []
    try:
        threading.Thread(target=remove_leftovers, daemon=True).start()
        pool.start()
        if not await _unless_stopped(stop, pool.first_manifest):
            return ExitCode.CLEAN
        manifest = pool.first_manifest.result()
        if not manifest.jobs:
            log.warning(
                "%s declares no jobs: import the modules that declare them in the module of the app", settings.app
            )
        database = manifest.database if settings.database is None else settings.database
        if database is None:
            raise NoDatabase
        url = conninfo(database)
        work, leases = ReconnectingConnection(url), ReconnectingConnection(url)
        sessions += work, leases
        store = Store(work, leases, identity, socket.gethostname())  # before they connect: it checks the token sequence
        for session in sessions:
            if not await _unless_stopped(stop, asyncio.ensure_future(session.open())):
                return ExitCode.CLEAN
        # Not before: an embedded Postgres that was started just now must not become a child of ours.
        pool.ignore_existing_children()
        _adopt_orphans()
        pool.welcome(messages.Welcome(str(identity), socket.gethostname(), url))
        # What is here now stays; and hundreds of tasks claimed together are not garbage to look for.
        gc.freeze()
        gc.set_threshold(20_000)
        service = Service(settings.app, pool, store, work, leases, stop)

        def say_so() -> None:
            log.info("serving %s from %s with %d workers", settings.app, label(database), settings.procs,
                     extra={"about": {"supervisor": str(identity)[:8], "pid": os.getpid()}})  # fmt: skip

        clean = await service.serve(grace=settings.grace, until_idle=settings.until_idle, on_serving=say_so)
        code = ExitCode.CLEAN if clean else ExitCode.KILLED_WORK
        log.info("stopped, exit code %d", code)
        return code
    except BootError as error:
        if error.terminated and not await _unless_stopped(stop, asyncio.ensure_future(until_unheard())):
            return ExitCode.CLEAN
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
        await pool.kill_all()
        for session in sessions:
            await session.close()
        stop.end_listening()


async def _unless_stopped(stop: StopRequest, something: "asyncio.Future[Any]") -> bool:
    """Wait for it, and let it raise what it will; False if we were told to stop before it was there."""
    told = asyncio.ensure_future(stop.draining.wait())
    await asyncio.wait([something, told], return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    if not something.done():
        something.cancel()
        return False
    something.result()
    return True


def _adopt_orphans() -> None:
    """Orphans of our workers come to us instead of to init, so that we can find and kill them."""
    if not become_subreaper():
        log.warning("no subreaper on %s: what a dead worker has started may survive it", sys.platform)
