"""The online phase of a migration: what must not hold a lock on a large table until a transaction ends.

`NNNN_name.online.sql` contains statements of two kinds:

- `create [unique] index concurrently` builds an index while rows are written.
- A statement after the line `-- repeat until no rows` changes one batch of rows, and is repeated until none is left. It
  may wait for a row that another transaction has locked. Supervisors skip the rows that it has locked, so batches must
  be small.

The statements run outside of any transaction, after the rest of the migration has been committed. So the code of the
release must work, if only more slowly, before they have run. They can be interrupted at any point: the next
`underway migrate` repeats them. An index whose build was interrupted is left invalid by Postgres, and is dropped and
built again.

One session at a time runs online phases, under an advisory lock of the session. So the connection must be direct: a
pooler in transaction mode would leave the lock behind.
"""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg.rows import tuple_row

from underway.postgres.queries import statements

_REPEAT = "-- repeat until no rows\n"
_INDEX = re.compile(r"^create (?:unique )?index concurrently (\w+) on (underway)\.", re.MULTILINE)
_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Statement:
    sql: LiteralString
    repeats: bool = False

    @property
    def index(self) -> LiteralString | None:
        """The name of the index that the statement builds."""
        match = _INDEX.search(self.sql)
        return f"{match[2]}.{match[1]}" if match else None

    @property
    def inside_transaction(self) -> LiteralString:
        """The same for empty tables."""
        return self.sql.replace(" concurrently ", " ")


def split(text: LiteralString) -> tuple[Statement, ...]:
    """The statements of a file: each ends with a semicolon at the end of a line."""
    parts = [part.strip() for part in re.split(r";$", text, flags=re.MULTILINE)]
    return tuple(Statement(part, repeats=_REPEAT in part) for part in parts if part)


def complete(connection: psycopg.Connection[Any], phases: Mapping[int, tuple[Statement, ...]]) -> list[int]:
    """Complete the online phases of these versions that are pending, and return the versions completed.

    Waits for another session that does so. The connection must not be in a transaction.
    """
    if not _pending(connection, phases):
        return []
    completed = []
    with _outside_transactions(connection), _online_lock(connection):
        for version in _pending(connection, phases):
            for statement in phases[version]:
                _run(connection, statement)
            connection.execute(statements()["record_online"], {"version": version})
            completed.append(version)
    return completed


def _pending(connection: psycopg.Connection[Any], phases: Mapping[int, object]) -> list[int]:
    with connection.transaction():
        return [version for (version,) in _fetch(connection, "pending_online") if version in phases]


def _run(connection: psycopg.Connection[Any], statement: Statement) -> None:
    if statement.index is not None:
        ((is_valid,),) = _fetch(connection, "index_is_valid", {"name": statement.index})
        if is_valid:
            return
        if is_valid is not None:
            connection.execute(f"drop index concurrently {statement.index}")
    while connection.execute(statement.sql).rowcount > 0 and statement.repeats:
        pass


@contextmanager
def _outside_transactions(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Each statement is its own transaction, without a timeout."""
    autocommit = connection.autocommit
    connection.autocommit = True
    ((statement_timeout, lock_timeout),) = _fetch(connection, "session_timeouts")
    connection.execute(statements()["set_session_timeouts"], {"statement_timeout": "0", "lock_timeout": "0"})
    try:
        yield
    finally:
        if not connection.closed:
            limits = {"statement_timeout": statement_timeout, "lock_timeout": lock_timeout}
            connection.execute(statements()["set_session_timeouts"], limits)
            connection.autocommit = autocommit


@contextmanager
def _online_lock(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Also waits for the server process of a migrator that was killed: it may still be building an index."""
    while _fetch(connection, "try_online_lock") != [(True,)]:
        time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute(statements()["release_online_lock"])


def _fetch(connection: psycopg.Connection[Any], name: str, parameters: Any = None) -> list[tuple[Any, ...]]:
    with connection.cursor(row_factory=tuple_row) as cursor:
        return cursor.execute(statements()[name], parameters).fetchall()
