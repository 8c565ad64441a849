"""The database of an app: its URL, the check of its schema, and connections to it."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from underway.client.process_pools import ProcessPools
from underway.errors import InvalidOption, NoDatabase

if TYPE_CHECKING:
    import psycopg

    from underway.client.loop_pools import LoopPools
    from underway.postgres.pools import AsyncPools, Pools
    from underway.postgres.query import BoundQuery

T = TypeVar("T")


class Database:
    """Where the jobs of an app live. Nothing is opened before the first use.

    `named` is a connection string or `embedded:`; None means UNDERWAY_DATABASE_URL, else DATABASE_URL.
    """

    def __init__(self, named: str | None = None) -> None:
        self.named = named
        self._process_pools = ProcessPools()

    @property
    def url(self) -> str | None:
        """The database as it was named, in code or by the environment; None if it was not named."""
        if self.named is not None:  # "" is a variable that was not set: an error is better than another database
            return self.named
        return os.environ.get("UNDERWAY_DATABASE_URL") or os.environ.get("DATABASE_URL") or None

    def conninfo(self) -> str:
        """The connection string for the driver. Raises NoDatabase, InvalidOption, EmbeddedPostgresError."""
        from underway.postgres import connection

        if self.url is None:
            raise NoDatabase
        return connection.conninfo(self.url)

    def checked_conninfo(self) -> str:
        """The connection string, after a connection has shown that the server answers and that the schema fits.

        With a wrong address, a pool would try in the background for half a minute before its first error.
        """
        import psycopg

        from underway.postgres import client_queries, migrate

        conninfo = self.conninfo()
        with psycopg.connect(conninfo) as connection:
            migrate.check(client_queries.applied_migrations(connection))
        return conninfo

    def migrate(self) -> list[str]:
        """Create or update the schema. Returns the names of the migrations that were applied."""
        import psycopg

        from underway.postgres import migrate

        with psycopg.connect(self.conninfo()) as connection:
            return migrate.migrate(connection)

    # For sync callers

    def run(self, query: "BoundQuery[T]", conn: "psycopg.Connection[Any] | None" = None) -> T:
        """Run a query on the caller's connection, in its transaction, or else on one of ours."""
        with self._given_or_own(conn) as connection:
            return query.run(connection)

    @contextmanager
    def connection(self) -> "Iterator[psycopg.Connection[Any]]":
        """A connection from the pool in a transaction: committed at the end, rolled back by an exception."""
        with self.pools().held() as connection:
            yield connection

    def pools(self) -> "Pools":
        """The pools of this process."""
        return self._process_pools.get(self.checked_conninfo)

    def close(self) -> None:
        """Close this process's connections; they open again when needed."""
        self._process_pools.close()

    @contextmanager
    def _given_or_own(self, conn: "psycopg.Connection[Any] | None") -> "Iterator[psycopg.Connection[Any]]":
        import psycopg

        if conn is None:
            with self.pools().statement() as connection:
                yield connection
        elif isinstance(conn, psycopg.Connection):
            yield conn
        else:
            hint = "; pass an async connection to underway.aio" if isinstance(conn, psycopg.AsyncConnection) else ""
            raise InvalidOption(f"conn must be a psycopg.Connection, not {type(conn).__name__}{hint}")

    # For async callers

    async def run_async(self, query: "BoundQuery[T]", conn: "psycopg.AsyncConnection[Any] | None" = None) -> T:
        """Run a query on the caller's connection, in its transaction, or else on one of ours."""
        async with self._given_or_own_async(conn) as connection:
            return await query.run_async(connection)

    @asynccontextmanager
    async def connection_async(self) -> "AsyncIterator[psycopg.AsyncConnection[Any]]":
        """A connection from the pool of this event loop in a transaction, as `connection()` is."""
        async with (await self.pools_async()).held() as connection:
            yield connection

    async def pools_async(self) -> "AsyncPools":
        """The pools of the running event loop."""
        return await self._loop_pools.get(self.url, self.checked_conninfo)

    async def close_async(self) -> None:
        """Close the connections on the running event loop; they open again when needed."""
        await self._loop_pools.close()

    @property
    def _loop_pools(self) -> "LoopPools":
        from underway.client.loop_pools import LoopPools  # imports asyncio, which sync callers do without

        # Several threads, each with an event loop of its own, may come here at once.
        pools: LoopPools = vars(self).setdefault("loop_pools", LoopPools())
        return pools

    @asynccontextmanager
    async def _given_or_own_async(
        self, conn: "psycopg.AsyncConnection[Any] | None"
    ) -> "AsyncIterator[psycopg.AsyncConnection[Any]]":
        import psycopg

        if conn is None:
            async with (await self.pools_async()).statement() as connection:
                yield connection
        elif isinstance(conn, psycopg.AsyncConnection):
            yield conn
        else:
            hint = (
                "; pass a sync connection to job.enqueue and the other sync calls"
                if isinstance(conn, psycopg.Connection)
                else ""
            )
            raise InvalidOption(f"conn must be a psycopg.AsyncConnection, not {type(conn).__name__}{hint}")
