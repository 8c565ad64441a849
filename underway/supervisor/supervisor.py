"""A supervisor's life: boot the crew, open the database, serve, leave nothing behind."""

import asyncio
import ctypes
import gc
import os
import socket
import sys
from dataclasses import dataclass, field
from logging import getLogger
from typing import Any
from uuid import uuid4

import psycopg

from underway import wire
from underway.errors import EmbeddedPostgresError, InvalidOption, NoDatabase, SchemaError
from underway.manifest import Manifest
from underway.postgres.connect import conninfo, label
from underway.postgres.session import DatabaseAway, Session
from underway.postgres.store import Store
from underway.supervisor.crew import BootError, Crew
from underway.supervisor.service import Service
from underway.supervisor.shutdown import ExitCode, StopRequest

log = getLogger("underway.supervisor")

_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class Settings:
    """`grace` is in seconds: how long a stop waits for running steps before it interrupts them."""

    app: str
    procs: int
    database: str | None = field(default=None, repr=False)  # may hold a password
    grace: float = 30.0
    until_idle: bool = False


def supervise(settings: Settings) -> int:
    """Run a supervisor until it is told to stop; returns its exit code."""
    return asyncio.run(_live(settings))


async def _live(settings: Settings) -> int:
    stop = StopRequest()
    stop.listen()
    # Its identity is new at every start: a host or a pid may come back, and what it left behind is not ours.
    identity = uuid4()
    crew = Crew(settings.app, settings.procs, str(identity))
    sessions: list[Session] = []
    try:
        crew.start()
        manifest = await _first_manifest(crew, stop)
        if manifest is None:
            return ExitCode.CLEAN
        database = settings.database or manifest.database
        if database is None:
            raise NoDatabase
        url = conninfo(database)
        work, leases = Session(url), Session(url)
        sessions += work, leases
        await work.open()
        await leases.open()
        # Not before: an embedded Postgres that was started just now must not become ours to bury.
        _become_subreaper()
        store = Store(work, leases, identity, socket.gethostname())
        crew.welcome(wire.Welcome(str(identity), socket.gethostname(), url))
        # What is here now stays; and hundreds of tasks claimed together are not garbage to look for.
        gc.freeze()
        gc.set_threshold(20_000)
        service = Service(settings.app, manifest, crew, store, work, leases, stop)
        log.info("serving %s from %s with %d workers", settings.app, label(database), settings.procs,
                 extra={"about": {"supervisor": str(identity)[:8], "pid": os.getpid()}})  # fmt: skip
        clean = await service.serve(grace=settings.grace, until_idle=settings.until_idle)
        return ExitCode.CLEAN if clean else ExitCode.KILLED_WORK
    except BootError as error:
        log.error("%s does not boot: %s", settings.app, error)
        return ExitCode.APP_DOES_NOT_BOOT
    except SchemaError as error:
        log.error("%s", error)
        return ExitCode.SCHEMA_DOES_NOT_FIT
    except (NoDatabase, InvalidOption) as error:
        log.error("%s", error)
        return ExitCode.USAGE
    except (DatabaseAway, EmbeddedPostgresError, psycopg.Error) as error:
        log.error("cannot reach the database: %s", error)
        return ExitCode.DATABASE_UNREACHABLE
    finally:
        await crew.kill_all()
        for session in sessions:
            await session.close()


async def _first_manifest(crew: Crew, stop: StopRequest) -> Manifest | None:
    """What the first worker can run; None if we were told to stop before it was up."""
    told = asyncio.ensure_future(stop.draining.wait())
    waiting: list[asyncio.Future[Any]] = [crew.first_manifest, told]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    return crew.first_manifest.result() if crew.first_manifest.done() else None


def _become_subreaper() -> None:
    """Orphans of our workers come to us instead of to init, so that we can find and kill them."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    else:
        log.warning("no subreaper on %s: what a dead worker has started may survive it", sys.platform)
