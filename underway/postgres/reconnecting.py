"""A connection of a supervisor that reconnects by itself."""

import asyncio
import contextlib
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from logging import getLogger
from typing import Any, LiteralString

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow, tuple_row

from underway.errors import SchemaError
from underway.guardian import lease_clock
from underway.postgres import arrays, migrate
from underway.postgres.queries import statements

log = getLogger("underway.postgres")

# A statement must take less than the renewal period of the default lease (15 s), unless its caller allows more time,
# for a single large row on a slow network.
STATEMENT_SECONDS = 10.0
# By this time after its deadline the server has cancelled the statement and reported it. A longer silence means that
# the connection is dead: a proxy whose server is gone keeps acknowledging packets, so TCP notices nothing. (A claim
# waited forever, and the renewals waited behind it.)
ANSWER_SECONDS = 2.0
# Between two tries to open a connection.
LONGEST_PAUSE = 5.0
# Maximum interval between two warnings with the same reason. A schema that is too new stays too new until an operator
# acts.
_LONGEST_SILENCE = 60.0
# Pauses after a statement that the server has refused; they grow while it refuses.
_LEAST_PAUSE = 0.2
_MOST_PAUSE = 2.0
_SETTINGS = {
    "statement_timeout": f"{STATEMENT_SECONDS:.0f}s",
    # Our statements never wait for a row lock, so they can only wait for a table lock, which may last for an hour.
    # Retrying is better than waiting in the lock queue, because other statements need the connection too. (A reaper in
    # the queue got the lock before supervisors that had to release runs they could not renew. It charged their runs
    # with crashes.)
    "lock_timeout": "1s",
    # A role may have one, and our connections are idle between two polls.
    "idle_session_timeout": "0",
    "default_transaction_isolation": "read\\ committed",
    # A role's own search path may contain objects of other users. Our statements qualify every name.
    "search_path": "pg_catalog,pg_temp",
    # psycopg reads only these styles, and a database may have others as its default.
    "datestyle": "ISO",
    "intervalstyle": "postgres",
    # All digits of a float: with fewer, the database's clock was minutes off, and leases were reaped while they ran.
    "extra_float_digits": "1",
    # After a bulk load and before the first ANALYZE, the planner prefers a bitmap scan and a sort of the whole backlog
    # to the index that is already in order: 422 ms instead of 0.6.
    "enable_bitmapscan": "off",
    "enable_seqscan": "off",
    # Plan once, not at each execution: planning a commit takes four times as long as committing one attempt. The danger
    # of a generic plan is a nested loop over the arrays: the planner expects ten rows, and with more the loop is
    # quadratic. Without nested loops and the scans above only one plan is left, whatever the table held when it was
    # planned.
    "plan_cache_mode": "force_generic_plan",
    "enable_nestloop": "off",
    # Up to PostgreSQL 17, a disabled scan that is the only possible one has such a high cost that the statement is
    # compiled first: 650 ms for each commit instead of 2.
    "jit": "off",
}
# Older servers than PostgreSQL 17 refuse a connection with this setting, so it is sent only where a timeout is set. A
# timeout that is shorter than STATEMENT_SECONDS would end the whole session together with a long statement.
_NO_TRANSACTION_TIMEOUT = {"transaction_timeout": "0"}

# The parameters are to blame: repeating the statement with them would always fail.
_DATA_ERRORS = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.StatementTooComplex,
)
# The source of the error "too many notifications in the NOTIFY queue": a session listens in a transaction that it does
# not end. The error has the code of a program limit, but the data is not to blame. (It failed attempts, and ended the
# supervisor.)
_NOTIFYING = "PreCommit_Notify"
# The connection still works; only this statement failed. After other errors (another standby was promoted, the server
# shuts down) a new connection is needed.
_TRANSIENT_ERRORS = (
    psycopg.errors.QueryCanceled,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.TransactionRollback,
    psycopg.errors.OutOfMemory,  # usually of shared memory: all sessions of the server together hold too many locks
)


class DatabaseUnavailable(Exception):
    """The connection broke during a statement, or the server refused it for now; whether it took effect is unknown."""


class ReconnectingConnection:
    """Runs statements one at a time on a connection that is opened, and reopened, when it is needed.

    Statements are prepared at their first use. Behind a pooler this is impossible, and they are planned each time.

    `on_notify` is called with the payload of each notification. `on_broken` is called when the connection breaks while
    it is idle. `on_open` is called with each new connection before its first statement.
    """

    def __init__(self, conninfo: str) -> None:
        self.on_notify: Callable[[str], None] | None = None
        self.on_broken: Callable[[], None] | None = None
        self.on_open: Callable[[psycopg.AsyncConnection[TupleRow]], Awaitable[None]] | None = None
        self._conninfo = conninfo
        self._connection: psycopg.AsyncConnection[TupleRow] | None = None
        self._lock = asyncio.Lock()
        self._watched: int | None = None
        self._pauses: dict[str, float] = {}  # how long to pause when this statement fails again
        self.opened = 0  # how often; callers compare it to detect that their session state is gone
        self.sent_at = 0.0  # when the latest statement was sent (monotonic), after any wait for a connection
        self.leased_from = 0.0  # the same instant on the lease clock

    async def open(self) -> psycopg.AsyncConnection[TupleRow]:
        """The connection; if it is closed, make one attempt to open it.

        Raises DatabaseUnavailable. If the schema does not fit, raises SchemaError at the first connection only, and
        DatabaseUnavailable later, because a restore makes the schema disappear temporarily. (A restore ended all
        supervisors with exit code 4.)
        """
        async with self._lock:  # two callers that find it closed must not both open one
            return await self._open()

    async def _open(self) -> psycopg.AsyncConnection[TupleRow]:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        try:
            connection = await self._connect()
        except psycopg.Error as error:
            raise DatabaseUnavailable(str(error).strip()) from error
        try:
            migrate.check_encoding(connection)
            migrate.check(await _applied_migrations(connection))
            if self.on_open is not None:
                await self.on_open(connection)
        except psycopg.Error as error:
            await connection.close()
            raise DatabaseUnavailable(str(error).strip()) from error
        except SchemaError as error:
            await connection.close()
            if not self.opened:
                raise
            raise DatabaseUnavailable(str(error)) from error
        except BaseException:
            await connection.close()
            raise
        self._connection = connection
        self.opened += 1
        connection.add_notify_handler(lambda notify: self._heard(notify.payload))
        return connection

    async def _connect(self) -> psycopg.AsyncConnection[TupleRow]:
        """Settings are sent when the connection starts, never with SET: a pooler would leave them to other clients."""
        try:
            connection = await self._connect_with(_SETTINGS)
            if await _limits_transactions(connection):
                await connection.close()
                connection = await self._connect_with(_SETTINGS | _NO_TRANSACTION_TIMEOUT)
            return connection
        except psycopg.OperationalError as error:
            if "unsupported startup parameter" not in str(error):
                raise
            log.warning("a pooler refuses these settings, continuing without them: %s", ", ".join(_SETTINGS))
            return await _connect(self._conninfo, prepare_threshold=None)

    async def _connect_with(self, settings: Mapping[str, str]) -> psycopg.AsyncConnection[TupleRow]:
        given = conninfo_to_dict(self._conninfo).get("options") or ""
        options = " ".join([str(given), *(f"-c {name}={value}" for name, value in settings.items())])
        return await _connect(make_conninfo(self._conninfo, options=options), prepare_threshold=0)

    async def fetch(
        self, statement: str, parameters: Mapping[str, Any] | None = None, *, seconds: float = STATEMENT_SECONDS
    ) -> list[TupleRow]:
        """Rows of a named statement. Waits indefinitely for a connection, then at most `seconds` for the statement.

        Raises DatabaseUnavailable if the connection breaks or the server refuses, and psycopg.Error if the parameters
        cannot be stored.
        """
        try:
            rows = await self._execute(statements()[statement], parameters, seconds)
        except psycopg.Error as error:
            if isinstance(error, _DATA_ERRORS) and error.diag.source_function != _NOTIFYING:
                raise
            await self._pause_after(statement)
            raise DatabaseUnavailable(str(error).strip()) from error
        self._pauses.pop(statement, None)
        return rows

    async def _execute(
        self, sql: LiteralString, parameters: Mapping[str, Any] | None, seconds: float
    ) -> list[TupleRow]:
        async with self._lock:
            connection = await self._open_patiently()
            self._unwatch()
            self.sent_at, self.leased_from = time.monotonic(), lease_clock.now()
            deadline = asyncio.get_running_loop().call_later(seconds + ANSWER_SECONDS, _hang_up, connection)
            try:
                if seconds <= STATEMENT_SECONDS:
                    return await _rows(connection, sql, parameters)
                return await _rows_in_longer(connection, sql, parameters, seconds)
            except psycopg.Error as error:
                if not isinstance(error, (*_DATA_ERRORS, *_TRANSIENT_ERRORS)):
                    await self.close()
                raise
            finally:
                deadline.cancel()
                self._watch()

    async def _pause_after(self, statement: str) -> None:
        """Keep a statement that fails at once from being repeated in a tight loop.

        The pause grows while this statement fails, even if others succeed: the disk may be full, or a grant missing. (A
        commit that could not be written was sent, and logged as interrupted, seven times a second.)
        """
        pause = self._pauses.get(statement, _LEAST_PAUSE)
        self._pauses[statement] = min(2 * pause, _MOST_PAUSE)
        await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311

    async def _open_patiently(self) -> psycopg.AsyncConnection[TupleRow]:
        pause, said, silent_until, silence = 0.05, "", 0.0, 1.0
        while True:
            try:
                return await self._open()
            except DatabaseUnavailable as error:
                if str(error) != said or time.monotonic() >= silent_until:
                    log.warning("cannot connect to the database, trying again in %.1f s: %s", pause, error)
                    said, silent_until = str(error), time.monotonic() + silence
                    silence = min(silence * 2, _LONGEST_SILENCE)
                # Jitter: supervisors that lost the database together must not all reconnect at the same instant.
                await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311
                pause = min(pause * 2, LONGEST_PAUSE)

    async def close(self) -> None:
        self._unwatch()
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    # Between statements

    def _watch(self) -> None:
        """Read notifications between statements; during a statement, the driver reads them."""
        if self.on_notify is not None and self._connection is not None and not self._connection.closed:
            self._watched = self._connection.fileno()
            asyncio.get_running_loop().add_reader(self._watched, self._on_readable, self._connection)

    def _unwatch(self) -> None:
        if self._watched is not None:
            asyncio.get_running_loop().remove_reader(self._watched)
            self._watched = None

    def _on_readable(self, connection: psycopg.AsyncConnection[TupleRow]) -> None:
        # Before anything else: a broken connection closes its descriptor, and the next connection may reuse its number.
        self._unwatch()
        try:
            connection.pgconn.consume_input()
        except psycopg.Error as error:
            log.warning("a connection broke while it was idle: %s", str(error).strip())
            if self.on_broken is not None:
                self.on_broken()
            return
        self._watch()
        while (notify := connection.pgconn.notifies()) is not None:
            self._heard(notify.extra.decode(errors="replace"))

    def _heard(self, payload: str) -> None:
        if self.on_notify is not None:
            self.on_notify(payload)


async def _rows(
    connection: psycopg.AsyncConnection[TupleRow], sql: LiteralString, parameters: Mapping[str, Any] | None
) -> list[TupleRow]:
    cursor = await connection.execute(sql, parameters)
    return await cursor.fetchall() if cursor.description else []


async def _rows_in_longer(
    connection: psycopg.AsyncConnection[TupleRow],
    sql: LiteralString,
    parameters: Mapping[str, Any] | None,
    seconds: float,
) -> list[TupleRow]:
    """Rows of a statement with its own timeout, set for one transaction because a pooler shares session settings."""
    async with connection.transaction():
        await connection.execute(statements()["set_deadline"], {"deadline": f"{seconds:.0f}s"})
        return await _rows(connection, sql, parameters)


def _hang_up(connection: psycopg.AsyncConnection[TupleRow]) -> None:
    """Shut the connection down, so that a statement that waits for its answer fails."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)


async def _connect(conninfo: str, prepare_threshold: int | None) -> psycopg.AsyncConnection[TupleRow]:
    connection = await psycopg.AsyncConnection.connect(
        conninfo, autocommit=True, prepare_threshold=prepare_threshold, row_factory=tuple_row
    )
    arrays.register(connection)
    return connection


async def _limits_transactions(connection: psycopg.AsyncConnection[TupleRow]) -> bool:
    try:
        cursor = await connection.execute(statements()["limits_transactions"])
        return await cursor.fetchone() == (True,)
    except BaseException:
        await connection.close()
        raise


async def _applied_migrations(connection: psycopg.AsyncConnection[TupleRow]) -> dict[int, int] | None:
    try:
        cursor = await connection.execute(statements()["applied_migrations"])
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return None
    return dict(await cursor.fetchall())
