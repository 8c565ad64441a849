"""The app's connections in a client process, for sync and async callers.

There are two pools. One serves the app's own statements; the other serves app.connection(), whose caller may keep a
connection for any length of time. With one pool for both, four threads that each held a connection and enqueued without
conn= waited for each other until the pool timed out.

A connection is checked before it is lent again. A server restart, idle_session_timeout, a pooler or a proxy closes idle
connections, and each of them would fail one caller.

A call waits five seconds for a server that cannot be reached: a quick restart fails no call. The first call after the
server's return succeeds. With psycopg_pool's own back-off calls failed for up to a minute after it.
"""

import asyncio
import select
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import psycopg
from psycopg.pq.abc import PGconn
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolClosed, PoolTimeout

_SIZE = 4
# A connection that was idle for longer must answer a query: a proxy or a firewall may have dropped it silently.
_RESTED_SECONDS = 5.0
_ANSWER_SECONDS = 2.0

_BUSY_SECONDS = 30.0
_AWAY_SECONDS = 5.0
# The pool connects when it is asked for a connection, so a waiting caller asks again.
_ASK_SECONDS = 1.0
# The pool tries twice in a row, then forgets the connection, and the next caller makes it try again.
_NO_BACK_OFF = 0.0

_STATEMENTS_BUSY = (
    f"all {_SIZE} connections for the app's own statements were busy for {_BUSY_SECONDS:g} s: check for an open "
    f"transaction that has enqueued the same unique key, and for {_SIZE} threads in enqueue_many whose values enqueue "
    f"runs themselves"
)
_HELD_BUSY = (
    f"all {_SIZE} connections that app.connection() lends were in use for {_BUSY_SECONDS:g} s: leave each `with "
    f"app.connection()` soon, open none inside another, and pass the one you have as conn="
)


class _Lent(psycopg.Connection[tuple[Any, ...]]):
    rests_since = 0.0


class _AsyncLent(psycopg.AsyncConnection[tuple[Any, ...]]):
    rests_since = 0.0


class Pools:
    """The pools of one process. Threads and connections are started at first use."""

    def __init__(self, conninfo: str) -> None:
        self._statements = _SyncPool(conninfo, autocommit=True, busy=_STATEMENTS_BUSY)
        self._held = _SyncPool(conninfo, autocommit=False, busy=_HELD_BUSY)

    @contextmanager
    def statement(self) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """An autocommit connection for single statements: without BEGIN and COMMIT a call takes one round trip."""
        with self._statements.borrowed() as connection:
            yield connection

    @contextmanager
    def held(self) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """A connection in a transaction: committed at the end, rolled back by an exception."""
        with self._held.borrowed() as connection, connection:  # ends the transaction; a pooled connection stays open
            yield connection

    def close(self) -> None:
        self._statements.close()
        self._held.close()


class _SyncPool:
    """A pool that is replaced when a signal handler has raised in a call that waits for a connection.

    psycopg_pool later gives a connection to that call, although it has ended, and the connection is lost. (Four
    interrupted calls, and all later ones timed out.)
    """

    def __init__(self, conninfo: str, *, autocommit: bool, busy: str) -> None:
        self.timeout = _BUSY_SECONDS
        self._busy = busy
        self._new_pool = partial(_pool, conninfo, autocommit=autocommit)
        self._pool = self._new_pool()

    @contextmanager
    def borrowed(self) -> Iterator[_Lent]:
        pool, connection = self._get()
        try:
            yield connection
        finally:
            connection.rests_since = time.monotonic()
            pool.putconn(connection)

    def close(self) -> None:
        self._pool.close()

    def _get(self) -> tuple[ConnectionPool[_Lent], _Lent]:
        wait = _Wait(self.timeout)
        while True:
            pool = self._pool
            try:
                if pool.closed:  # first use
                    pool.open()
                return pool, pool.getconn(_ASK_SECONDS)
            except PoolTimeout as error:
                over = wait.is_over
                if over or wait.is_outage(pool):
                    psycopg.connect(str(pool.conninfo)).close()  # raises the error that keeps the pool from connecting
                if over:
                    raise PoolTimeout(self._busy) from error
            except PoolClosed:
                if pool is self._pool:
                    raise
            except Exception:
                raise
            except BaseException:
                self._pool = self._new_pool()
                pool.close(timeout=0)
                raise


class AsyncPools:
    """The same pools for an event loop. Their background tasks start with `open`."""

    def __init__(self, conninfo: str) -> None:
        self._statements = _AsyncPool(conninfo, autocommit=True, busy=_STATEMENTS_BUSY)
        self._held = _AsyncPool(conninfo, autocommit=False, busy=_HELD_BUSY)

    async def open(self) -> None:
        await self._statements.open()
        await self._held.open()

    @asynccontextmanager
    async def statement(self) -> AsyncIterator[psycopg.AsyncConnection[tuple[Any, ...]]]:
        """An autocommit connection for single statements."""
        async with self._statements.borrowed() as connection:
            yield connection

    @asynccontextmanager
    async def held(self) -> AsyncIterator[psycopg.AsyncConnection[tuple[Any, ...]]]:
        """A connection in a transaction: committed at the end, rolled back by an exception."""
        async with self._held.borrowed() as connection, connection:
            yield connection

    async def close(self) -> None:
        await self._statements.close()
        await self._held.close()


class _AsyncPool:
    def __init__(self, conninfo: str, *, autocommit: bool, busy: str) -> None:
        self.timeout = _BUSY_SECONDS
        self._busy = busy
        self._pool = _async_pool(conninfo, autocommit=autocommit)

    async def open(self) -> None:
        await self._pool.open()

    @asynccontextmanager
    async def borrowed(self) -> AsyncIterator[_AsyncLent]:
        connection = await self._get()
        try:
            yield connection
        finally:
            connection.rests_since = time.monotonic()
            await self._pool.putconn(connection)

    async def close(self) -> None:
        await self._pool.close()

    async def _get(self) -> _AsyncLent:
        wait = _Wait(self.timeout)
        while True:
            try:
                return await self._pool.getconn(_ASK_SECONDS)
            except PoolTimeout as error:
                over = wait.is_over
                if over or wait.is_outage(self._pool):
                    await (await psycopg.AsyncConnection.connect(str(self._pool.conninfo))).close()
                if over:
                    raise PoolTimeout(self._busy) from error


class _Wait:
    """How long a call has waited for a connection, and whether it should still wait."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._began = time.monotonic()

    @property
    def is_over(self) -> bool:
        return time.monotonic() - self._began > self._timeout

    def is_outage(self, pool: ConnectionPool[_Lent] | AsyncConnectionPool[_AsyncLent]) -> bool:
        """Whether the pool has had time to connect and has no connection, not even one that is lent or being opened."""
        return time.monotonic() - self._began > _AWAY_SECONDS and pool.get_stats()["pool_size"] == 0


def _pool(conninfo: str, *, autocommit: bool) -> ConnectionPool[_Lent]:
    def check(connection: _Lent) -> None:
        if not _is_fine(connection):
            connection.close()
            pool.drain()  # the others are probably broken too; otherwise the pool checks them one by one, with pauses
            raise psycopg.OperationalError("the connection broke while it was idle")

    pool = ConnectionPool(conninfo, connection_class=_Lent, check=check, **_options(autocommit))
    return pool


def _async_pool(conninfo: str, *, autocommit: bool) -> AsyncConnectionPool[_AsyncLent]:
    async def check(connection: _AsyncLent) -> None:
        if not await _is_fine_async(connection):
            await connection.close()
            await pool.drain()
            raise psycopg.OperationalError("the connection broke while it was idle")

    pool = AsyncConnectionPool(conninfo, connection_class=_AsyncLent, check=check, **_options(autocommit))
    return pool


def _options(autocommit: bool) -> dict[str, Any]:
    return {
        "kwargs": {"autocommit": autocommit},
        "min_size": 0,
        "max_size": _SIZE,
        "name": "underway" if autocommit else "underway-held",  # the pool logs that it cannot connect
        "reconnect_timeout": _NO_BACK_OFF,
        "open": False,
    }


# Checking idle connections


def _is_fine(connection: _Lent) -> bool:
    try:
        if _is_quiet(connection):
            return True
        until = time.monotonic() + _ANSWER_SECONDS
        return all(_readable(connection.fileno(), until - time.monotonic()) for _ in _asking(connection.pgconn))
    except psycopg.OperationalError:
        return False


async def _is_fine_async(connection: _AsyncLent) -> bool:
    try:
        if _is_quiet(connection):
            return True
        async with asyncio.timeout(_ANSWER_SECONDS):
            for _ in _asking(connection.pgconn):
                await _until_readable(connection.fileno())
        return True
    except (psycopg.OperationalError, TimeoutError):
        return False


def _is_quiet(connection: _Lent | _AsyncLent) -> bool:
    """Whether the connection was used recently and nothing, not even an end of file, has arrived on it since.

    This takes a microsecond; a query would take as long as an enqueue.
    """
    rested = time.monotonic() - connection.rests_since > _RESTED_SECONDS
    return not rested and not _readable(connection.fileno(), 0)


def _asking(pgconn: PGconn) -> Iterator[None]:
    """Send an empty query and read the answer. Yields whenever the caller must wait until the socket is readable.

    Raises OperationalError.
    """
    pgconn.send_query(b"")
    pgconn.flush()
    while True:
        yield
        pgconn.consume_input()
        while not pgconn.is_busy():
            if pgconn.get_result() is None:
                return


def _readable(socket: int, seconds: float) -> bool:
    waiting = select.poll()
    waiting.register(socket, select.POLLIN)
    return bool(waiting.poll(max(0.0, seconds) * 1000))


async def _until_readable(socket: int) -> None:
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(socket, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(socket)
