"""The client for asyncio services: what `Underway`, `Job` and `Run` do, awaited.

    from underway import aio

    run = await aio.enqueue(order_receipt, GenerateReceipt(order_id=42), conn=conn)
    print(await run.result(timeout=60))

`conn=` is a psycopg.AsyncConnection of the caller's, and its transaction; without it the app opens a small pool on the
running event loop, at first use. The statements, checks and errors are those of the sync client.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Never, overload
from uuid import UUID

from typing_extensions import TypeVar, Unpack

from underway.client import dead_letters as dead_letter_operations
from underway.client import operations
from underway.client import quarantine as quarantine_operations
from underway.client import schedules as schedule_operations
from underway.client.dead_letters import UNCHANGED, DeadLetter
from underway.client.job import Job
from underway.client.quarantine import Quarantined
from underway.client.run import PollBackoff, RunHandle
from underway.client.run_state import Attempt, Status
from underway.client.schedules import CatchUp, Schedule
from underway.definition import options
from underway.definition.app_import import forbid_during_import
from underway.definition.options import RunOptions
from underway.errors import InvalidOption

if TYPE_CHECKING:
    import psycopg

    from underway.app import Underway

__all__ = [
    "AsyncRun",
    "cancel",
    "cancel_all",
    "cancel_run",
    "close",
    "connection",
    "dead_letters",
    "discard",
    "enqueue",
    "enqueue_many",
    "get_run",
    "migrate",
    "pause",
    "quarantined",
    "redrive",
    "release_quarantined",
    "resume",
    "schedule",
    "schedules",
    "sync",
    "unschedule",
]

In = TypeVar("In")
R = TypeVar("R", covariant=True)


class AsyncRun(RunHandle[R]):
    """A handle of one run, like `underway.Run`; `await aio.get_run(app, id)` makes an equal one anywhere."""

    __slots__ = ()

    async def status(self) -> Status:
        """Raises RunNotFound if the run was never committed, or has left the database after its `keep`."""
        return await self._database.run_async(operations.status(self.id))

    async def wait(self, timeout: timedelta | float | None = None) -> Status:
        """Wait until the run is finished and return its final status. `timeout` in seconds or as a timedelta.

        Raises TimeoutError. Holds no connection between two polls.
        """
        backoff = PollBackoff(self.id, timeout)
        while not (status := await self.status()).final:
            await asyncio.sleep(backoff.next_pause(status))
        return status

    async def result(self, timeout: timedelta | float | None = None) -> R:
        """The value of `To.done`, once the run has succeeded; waits for that like `wait`.

        Raises RunFailed with the last error, RunCancelled, RunNotFound, TimeoutError.
        """
        await self.wait(timeout)
        value: R = await self._database.run_async(operations.result(self.id, self._result_type))
        return value

    async def attempts(self) -> list[Attempt]:
        """All attempts that have ended so far, in order."""
        return await self._database.run_async(operations.attempts(self.id))

    async def cancel(self, *, conn: "psycopg.AsyncConnection[Any] | None" = None) -> bool:
        """Cancel the run, for good. Returns False if it is finished, cancelled already or unknown. See Run.cancel."""
        return await self._database.run_async(operations.cancel(self.id, conn), conn)


# What `Job` does


@overload
async def enqueue(
    job: Job[In, Never, R],
    value: In,
    *,
    conn: "psycopg.AsyncConnection[Any] | None" = None,
    **given: Unpack[RunOptions],
) -> AsyncRun[R]: ...
@overload
async def enqueue(
    job: Job[None, Never, R], *, conn: "psycopg.AsyncConnection[Any] | None" = None, **given: Unpack[RunOptions]
) -> AsyncRun[R]: ...
async def enqueue(
    job: Job[Any, Never, Any],
    value: Any = None,
    *,
    conn: "psycopg.AsyncConnection[Any] | None" = None,
    **given: Unpack[RunOptions],
) -> AsyncRun[Any]:
    """Enqueue a run. With `conn=`, it is committed or rolled back with everything else in your transaction.

    Options and errors as in Job.enqueue.
    """
    ((run_id, created),) = await job.database.run_async(operations.enqueue(job, value, conn, given), conn)
    return AsyncRun(job.database, run_id, job.result_type, created=created)


async def enqueue_many(
    job: Job[In, Never, R],
    values: Iterable[In],
    *,
    conn: "psycopg.AsyncConnection[Any] | None" = None,
    **given: Unpack[RunOptions],
) -> list[AsyncRun[R]]:
    """Enqueue a run for each value, all of them or none, by COPY. The runs are in the order of the values.

    Values are encoded between one write to the database and the next, so other asyncio tasks continue meanwhile.
    """
    # A plain iterator cannot await, so it cannot use this connection while its values are read: hence a single COPY.
    query = operations.enqueue_many(job, values, conn, given, in_one=True)
    enqueued = await job.database.run_async(query, conn)
    return [AsyncRun(job.database, run_id, job.result_type, created=created) for run_id, created in enqueued]


async def cancel(
    job: Job[Any, Any, Any],
    *,
    unique_key: str | None = None,
    concurrency_key: str | None = None,
    conn: "psycopg.AsyncConnection[Any] | None" = None,
) -> int:
    """Cancel the job's live run with this unique key, or its live runs with this concurrency key. See Job.cancel."""
    _refuse_run("aio.cancel", job)
    return await job.database.run_async(operations.cancel_key(job, unique_key, concurrency_key), conn)


async def cancel_all(job: Job[Any, Any, Any], *, conn: "psycopg.AsyncConnection[Any] | None" = None) -> int:
    """Cancel all live runs of this job, as Run.cancel does, in one transaction. Returns their number."""
    _refuse_run("aio.cancel_all", job)
    return await job.database.run_async(operations.cancel_all(job, conn), conn)


def _refuse_run(call: str, job: object) -> None:
    """Raise InvalidOption for the ID of a run, which `app.cancel` takes."""
    if not isinstance(job, Job):
        instead = "one run is cancelled by its id, aio.cancel_run(app, id), or its handle, aio.get_run(app, id)"
        raise InvalidOption(f"{call} takes a job, not {job!r}; {instead}")


@overload
async def schedule(
    job: Job[In, Never, R],
    cron: str,
    value: In,
    *,
    name: str = "default",
    catch_up: CatchUp = "last",
    overlap: bool = True,
    conn: "psycopg.AsyncConnection[Any] | None" = None,
) -> Schedule: ...
@overload
async def schedule(
    job: Job[None, Never, R],
    cron: str,
    *,
    name: str = "default",
    catch_up: CatchUp = "last",
    overlap: bool = True,
    conn: "psycopg.AsyncConnection[Any] | None" = None,
) -> Schedule: ...
async def schedule(
    job: Job[Any, Never, Any],
    cron: str,
    value: Any = None,
    *,
    name: str = "default",
    catch_up: CatchUp = "last",
    overlap: bool = True,
    conn: "psycopg.AsyncConnection[Any] | None" = None,
) -> Schedule:
    """Enqueue a run with this value at every slot of a cron line, as Job.schedule does."""
    query = schedule_operations.schedule(job, cron, value, conn, name=name, catch_up=catch_up, overlap=overlap)
    return await job.database.run_async(query, conn)


async def unschedule(
    job: Job[Any, Any, Any], name: str = "default", *, conn: "psycopg.AsyncConnection[Any] | None" = None
) -> bool:
    """Remove a schedule. Returns whether it existed. The runs that it has enqueued stay."""
    return await job.database.run_async(schedule_operations.unschedule(job, name, conn), conn)


# What `Underway` does: runs


async def get_run(app: "Underway", run_id: UUID | str) -> AsyncRun[Any]:
    """A handle of a run, from anywhere. Raises RunNotFound, and InvalidOption for an ID that is not a UUID."""
    run_id = options.checked_id(run_id)
    return _handles(app)(run_id, await app.database.run_async(operations.job_of(run_id)))


async def cancel_run(
    app: "Underway", run_id: UUID | str, *, conn: "psycopg.AsyncConnection[Any] | None" = None
) -> bool:
    """Cancel a run by its ID, as `app.cancel` does."""
    return await app.database.run_async(operations.cancel(options.checked_id(run_id), conn), conn)


def _handles(app: "Underway") -> Callable[[UUID, str], AsyncRun[Any]]:
    """Makes handles of runs that are known to exist, from their ID and job."""
    return lambda run_id, job: AsyncRun(app.database, run_id, app.registry.result_type(job), created=False)


# Queues


async def pause(app: "Underway", queue: str, *, conn: "psycopg.AsyncConnection[Any] | None" = None) -> bool:
    """Start no run of this queue, on any supervisor, until `resume`. See `app.pause`."""
    return await app.database.run_async(operations.pause(app.registry, queue), conn)


async def resume(app: "Underway", queue: str, *, conn: "psycopg.AsyncConnection[Any] | None" = None) -> bool:
    """Undo `pause`. Returns False if the queue was not paused."""
    return await app.database.run_async(operations.resume(queue), conn)


# Failed runs


async def dead_letters(app: "Underway", label: str, *, limit: int = 100) -> list[DeadLetter[AsyncRun[Any]]]:
    """The failed runs with this dead-letter label, the oldest first. Raises InvalidOption for the ID of a run."""
    return await app.database.run_async(dead_letter_operations.dead_letters(label, limit, _handles(app)))


async def redrive(
    app: "Underway",
    run_or_label: RunHandle[Any] | UUID | str,
    *,
    input: Any = UNCHANGED,
    limit: int | None = None,
    conn: "psycopg.AsyncConnection[Any] | None" = None,
) -> int:
    """Continue a failed run, or all runs with a label, at the step that failed. See `app.redrive`."""
    query = dead_letter_operations.redrive(app.registry, run_or_label, input, limit)
    return await app.database.run_async(query, conn)


async def discard(
    app: "Underway",
    run_or_label: RunHandle[Any] | UUID | str,
    *,
    conn: "psycopg.AsyncConnection[Any] | None" = None,
) -> int:
    """Remove the dead-letter label from a run, or from all runs that have it. See `app.discard`."""
    return await app.database.run_async(dead_letter_operations.discard(app.registry, run_or_label), conn)


async def quarantined(app: "Underway", job: str | None = None, *, limit: int = 100) -> list[Quarantined[AsyncRun[Any]]]:
    """The runs whose process died too often, of one job or all, the newest first. `redrive` releases one."""
    return await app.database.run_async(quarantine_operations.quarantined(job, limit, _handles(app)))


async def release_quarantined(
    app: "Underway",
    job: str | None = None,
    *,
    limit: int | None = None,
    conn: "psycopg.AsyncConnection[Any] | None" = None,
) -> int:
    """Redrive the quarantined runs of one job or all, or the `limit` oldest. Returns the number of runs."""
    return await app.database.run_async(quarantine_operations.release_quarantined(job, limit), conn)


# Schedules


async def schedules(app: "Underway") -> list[Schedule]:
    """All schedules in the database by job and name, including those of jobs that this app does not know."""
    return await app.database.run_async(schedule_operations.schedules())


# The database


@asynccontextmanager
async def connection(app: "Underway") -> "AsyncIterator[psycopg.AsyncConnection[Any]]":
    """A connection from the app's pool on this event loop, in a transaction like that of `app.connection()`.

    Opens the pool at first use; `close` it before the loop ends.
    """
    async with app.database.connection_async() as connection:
        yield connection


async def close(app: "Underway") -> None:
    """Close the app's connections on this event loop, as at the end of a service; they open again when needed."""
    await app.database.close_async()


async def migrate(app: "Underway") -> list[str]:
    """Create or update the schema `underway`, in a thread. See `app.migrate`."""
    forbid_during_import("migrate")
    return await asyncio.to_thread(app.database.migrate)


async def sync(app: "Underway") -> list[str]:
    """Register the jobs and the queues in the database. Returns the names of the jobs. See `app.sync`."""
    return await app.database.run_async(operations.register(app.registry))
