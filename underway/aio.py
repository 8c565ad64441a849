"""The client for asyncio services: what `Job` and `Run` do, awaited.

    from underway import aio

    run = await aio.enqueue(order_receipt, GenerateReceipt(order_id=42), conn=conn)
    print(await run.result(timeout=60))

`conn=` is a psycopg.AsyncConnection of the caller's, and its transaction; without it the app opens a small pool on the
running event loop, at first use. The same statements, checks and errors as in the sync client.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Never, overload
from uuid import UUID
from weakref import WeakKeyDictionary

from typing_extensions import TypeVar, Unpack

from underway.client import runs
from underway.client import schedules as scheduling
from underway.client.runs import Attempt, Handle, PollBackoff, Status
from underway.client.schedules import CatchUp, Schedule
from underway.definition import options
from underway.definition.context import survives_step
from underway.definition.job import Job
from underway.definition.loading import forbid_during_import
from underway.definition.options import RunOptions
from underway.errors import InvalidOption

if TYPE_CHECKING:
    import psycopg

    from underway.app import Underway
    from underway.postgres.pools import AsyncPools

__all__ = [
    "AsyncRun",
    "cancel",
    "cancel_all",
    "close",
    "connection",
    "enqueue",
    "enqueue_many",
    "get_run",
    "schedule",
    "schedules",
    "unschedule",
]

In = TypeVar("In")
R = TypeVar("R", covariant=True)


class AsyncRun(Handle[R]):
    """A handle of one run, like `underway.Run`; made anew anywhere with `await aio.get_run(app, id)`."""

    __slots__ = ()

    async def status(self) -> Status:
        """Raises RunNotFound if it was never committed, or has left after its `keep`."""
        from underway.postgres import client_queries

        async with _own(self._app) as own:
            return runs.known_status(self.id, await client_queries.status.on(own, self.id))

    async def wait(self, timeout: timedelta | float | None = None) -> Status:
        """Wait until the run is finished and return its final status. `timeout` in seconds or as a timedelta.

        Raises TimeoutError. Holds no connection while it waits.
        """
        patience = PollBackoff(self.id, timeout)
        while not (status := await self.status()).final:
            await asyncio.sleep(patience.next_pause(status))
        return status

    async def result(self, timeout: timedelta | float | None = None) -> R:
        """What `To.done` carried, once the run has succeeded; waits for that like `wait`.

        Raises RunFailed with the last error, RunCancelled, RunNotFound, TimeoutError.
        """
        from underway.postgres import client_queries

        await self.wait(timeout)
        async with _own(self._app) as own:
            outcome = await client_queries.outcome.on(own, self.id)
        value: R = runs.result_of(self.id, outcome, self._result_type)
        return value

    async def attempts(self) -> list[Attempt]:
        """All attempts so far that have ended, in order."""
        from underway.postgres import client_queries

        async with _own(self._app) as own:
            return [Attempt(*row) for row in await client_queries.attempts.on(own, self.id)]

    async def cancel(self, *, conn: "psycopg.AsyncConnection[Any] | None" = None) -> bool:
        """Cancel the run, for good; False if it was finished, cancelled before, or never there. See Run.cancel."""
        from underway.postgres import client_queries

        forbid_during_import("AsyncRun.cancel")
        async with _connection(self._app, conn) as one:
            return await client_queries.cancel.on(one, self.id)


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
    """Enqueue a run. With `conn=` in your transaction: committed or rolled back with everything else in it.

    Raises PayloadError if the value cannot travel, JobDefinitionError if the job's steps do not fit together.
    """
    runs.refuse_enqueue(conn)
    question, arguments = runs.one_run(job, value, given)
    async with _connection(job._app, conn) as one:
        ((run_id, created),) = await question.on(one, *arguments)
    return AsyncRun(job._app, run_id, job.result_type, created=created)


async def enqueue_many(
    job: Job[In, Never, R],
    values: Iterable[In],
    *,
    conn: "psycopg.AsyncConnection[Any] | None" = None,
    **given: Unpack[RunOptions],
) -> list[AsyncRun[R]]:
    """Enqueue a run for each value, all or none of them, by COPY. The runs are in the order of the values.

    Values are encoded between one write to the database and the next, so other tasks go on meanwhile.
    """
    runs.refuse_enqueue(conn)
    # A plain iterator cannot await, so the values cannot use this connection while they are read.
    question, arguments = runs.many_runs(job, values, given, in_one=True)
    async with _connection(job._app, conn) as one:
        placed = await question.on(one, *arguments)
    return [AsyncRun(job._app, run_id, job.result_type, created=created) for run_id, created in placed]


async def cancel(
    job: Job[Any, Any, Any],
    *,
    unique_key: str | None = None,
    concurrency_key: str | None = None,
    conn: "psycopg.AsyncConnection[Any] | None" = None,
) -> int:
    """Cancel the job's live run with this unique key, or its live runs with this concurrency key. See Job.cancel."""
    from underway.postgres import client_queries

    forbid_during_import("aio.cancel")
    _refuse_run("aio.cancel", job)
    async with _connection(job._app, conn) as one:
        elsewhere = runs.steps_with_another_key(job)
        return await client_queries.cancel_key.on(
            one, job.name, unique_key=unique_key, concurrency_key=concurrency_key, elsewhere=elsewhere
        )


async def cancel_all(job: Job[Any, Any, Any], *, conn: "psycopg.AsyncConnection[Any] | None" = None) -> int:
    """Cancel all live runs of this job, as Run.cancel does; returns how many. All of it is one transaction."""
    from underway.postgres import client_queries

    forbid_during_import("aio.cancel_all")
    _refuse_run("aio.cancel_all", job)
    async with _connection(job._app, conn) as one:
        return await client_queries.cancel_job.on(one, job.name)


def _refuse_run(call: str, job: object) -> None:
    """`app.cancel` takes the id of a run."""
    if not isinstance(job, Job):
        instead = "to cancel one run, use (await aio.get_run(app, id)).cancel()"
        raise InvalidOption(f"{call} takes a job, not {job!r}; {instead}")


async def get_run(app: "Underway", run_id: UUID | str) -> AsyncRun[Any]:
    """A handle of a run, from anywhere. Raises RunNotFound, InvalidOption for what is no UUID."""
    from underway.postgres import client_queries

    run_id = options.checked_id(run_id)
    async with _own(app) as own:
        name = await client_queries.job_of.on(own, run_id)
    return AsyncRun(app, run_id, app._result_type(runs.known_job(run_id, name)), created=False)


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
    """Enqueue a run with this value at every slot of a cron line. Everything as in Job.schedule."""
    from underway.postgres.schedule_queries import put

    scheduling.refuse("schedule", conn)
    row_at = scheduling.checked(job, cron, value, name, catch_up, overlap)
    async with _connection(job._app, conn) as one:
        return scheduling.made(await put.on(one, row_at))


async def unschedule(
    job: Job[Any, Any, Any], name: str = "default", *, conn: "psycopg.AsyncConnection[Any] | None" = None
) -> bool:
    """Remove a schedule; whether there was one. Runs that it has enqueued stay."""
    from underway.postgres.schedule_queries import drop

    scheduling.refuse("unschedule", conn)
    async with _connection(job._app, conn) as one:
        return await drop.on(one, job.name, name)


async def schedules(app: "Underway") -> list[Schedule]:
    """All schedules in the database, also those of jobs that this app does not know; by job and name."""
    from underway.postgres.schedule_queries import every

    async with _own(app) as own:
        return [scheduling.made(row) for row in await every.on(own)]


# The app's connections. A pool belongs to the event loop on which it was opened.


class _Opened:
    def __init__(self) -> None:
        self.opening = asyncio.Lock()
        self.database: str | None = None
        self.pools: AsyncPools | None = None


_pools: "WeakKeyDictionary[Underway, dict[asyncio.AbstractEventLoop, _Opened]]" = WeakKeyDictionary()


@asynccontextmanager
async def connection(app: "Underway") -> "AsyncIterator[psycopg.AsyncConnection[Any]]":
    """A connection from the app's pool on this event loop, in a transaction like that of `app.connection()`.

    Opens the pool at first use; `close` it before the loop ends.
    """
    async with (await _connections(app)).held() as own:
        yield own


@asynccontextmanager
async def _own(app: "Underway") -> "AsyncIterator[psycopg.AsyncConnection[Any]]":
    """One of the app's own connections, in autocommit mode."""
    async with (await _connections(app)).statement() as own:
        yield own


async def close(app: "Underway") -> None:
    """Close the app's connections on this event loop, as at the end of a service; they open again when needed."""
    mine = _pools.get(app, {}).pop(asyncio.get_running_loop(), None)
    if mine is not None and mine.pools is not None:
        await mine.pools.close()


async def _connections(app: "Underway") -> "AsyncPools":
    pools = _pools.setdefault(app, {})
    for loop in [loop for loop in pools if loop.is_closed()]:
        del pools[loop]
    mine = pools.setdefault(asyncio.get_running_loop(), _Opened())
    async with mine.opening:
        if mine.pools is not None and mine.database != app.database:  # changed, as by a test on the same loop
            await mine.pools.close()
            mine.pools = None
        if mine.pools is None:
            from underway.postgres.pools import AsyncPools

            mine.database = app.database
            # In a thread: it may start the embedded Postgres, and connects.
            opened = AsyncPools(await asyncio.to_thread(app._checked_url))
            before = survives_step.set(True)  # otherwise the pools' tasks would end with the step that opens them
            try:
                await opened.open()
            finally:
                survives_step.reset(before)
            mine.pools = opened
        return mine.pools


@asynccontextmanager
async def _connection(
    app: "Underway", conn: "psycopg.AsyncConnection[Any] | None"
) -> "AsyncIterator[psycopg.AsyncConnection[Any]]":
    """The caller's, which stays in its transaction; else one of the app's own, as the sync client has it."""
    import psycopg

    if conn is None:
        async with _own(app) as own:
            yield own
    elif isinstance(conn, psycopg.AsyncConnection):
        yield conn
    else:
        hint = (
            "; pass a sync connection to job.enqueue and the other sync calls"
            if isinstance(conn, psycopg.Connection)
            else ""
        )
        raise InvalidOption(f"conn must be a psycopg.AsyncConnection, not {type(conn).__name__}{hint}")
