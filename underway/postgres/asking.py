"""Questions to Postgres that are asked alike on a sync and on an async connection.

A question is a generator that yields statements and is sent their rows. So what is asked, in which order, and what
the answer means is written once; how it is sent is written here, once for each kind of connection.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from typing import Any, Generic, NamedTuple, ParamSpec, TypeAlias, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from underway.errors import SchemaMissing
from underway.postgres.cursors import AsyncOwnCursor, OwnCursor
from underway.postgres.queries import statements

P = ParamSpec("P")
T = TypeVar("T")

Rows: TypeAlias = list[tuple[Any, ...]]


class Statement(NamedTuple):
    """One of `sql/statements/*.sql`, by name. With `lines` it is a COPY of these lines.

    The driver holds the connection's lock for the duration of a COPY, so the code that produces `lines` must not use
    the connection: it would deadlock.
    """

    name: str
    parameters: Any = None
    lines: Iterable[bytes] | None = None


Asking: TypeAlias = Generator[Statement, Rows, T]


# Any statement does: a connection that is not in autocommit begins a transaction for its first one.
_BEGIN = Statement("clock")


class Question(Generic[P, T]):
    """`question(connection, ...)` on a psycopg.Connection, `await question.on(connection, ...)` on an AsyncConnection.

    Raises SchemaMissing where our tables are not, and whatever else the driver raises.
    """

    def __init__(self, asking: Callable[P, Asking[T]], *, atomic: bool = False) -> None:
        self._asking = asking
        self._atomic = atomic

    def __call__(self, connection: psycopg.Connection[Any], *args: P.args, **kwargs: P.kwargs) -> T:
        asking = self._asking(*args, **kwargs)
        with _schema_expected(), ExitStack() as whole:
            if self._atomic:
                if _would_commit(connection):
                    _answer(connection, _BEGIN)
                whole.enter_context(connection.transaction())
            try:
                statement = next(asking)
                while True:
                    statement = asking.send(_answer(connection, statement))
            except StopIteration as end:
                answer: T = end.value
                return answer

    async def on(self, connection: psycopg.AsyncConnection[Any], *args: P.args, **kwargs: P.kwargs) -> T:
        asking = self._asking(*args, **kwargs)
        with _schema_expected():
            async with AsyncExitStack() as whole:
                if self._atomic:
                    if _would_commit(connection):
                        await _answer_async(connection, _BEGIN)
                    await whole.enter_async_context(connection.transaction())
                try:
                    statement = next(asking)
                    while True:
                        statement = asking.send(await _answer_async(connection, statement))
                except StopIteration as end:
                    answer: T = end.value
                    return answer


def question(asking: Callable[P, Asking[T]]) -> Question[P, T]:
    """Each statement for itself, or in the transaction that the caller has opened."""
    return Question(asking)


def atomic_question(asking: Callable[P, Asking[T]]) -> Question[P, T]:
    """All statements in a transaction, or in a savepoint of the caller's: all of it or nothing."""
    return Question(asking, atomic=True)


def fetch(connection: psycopg.Connection[Any], name: str, parameters: Any = None) -> Rows:
    """Rows of one named statement."""
    with _schema_expected():
        return _answer(connection, Statement(name, parameters))


# Statements are never prepared: see Session.
# In a pipeline nobody knows whether there are rows before asking for them; every question's statements have some.


def _answer(connection: psycopg.Connection[Any], statement: Statement) -> Rows:
    text = statements()[statement.name]
    with OwnCursor(connection) as cursor:
        if statement.lines is not None:
            with cursor.copy(text) as copy:
                for line in statement.lines:
                    copy.write(line)
            return []
        cursor.execute(text, statement.parameters, prepare=False)
        return cursor.fetchall() if cursor.description or connection.pgconn.pipeline_status else []


async def _answer_async(connection: psycopg.AsyncConnection[Any], statement: Statement) -> Rows:
    text = statements()[statement.name]
    async with AsyncOwnCursor(connection) as cursor:
        if statement.lines is not None:
            async with cursor.copy(text) as copy:
                for line in statement.lines:
                    await copy.write(line)
            return []
        await cursor.execute(text, statement.parameters, prepare=False)
        return await cursor.fetchall() if cursor.description or connection.pgconn.pipeline_status else []


def _would_commit(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    """Whether transaction() would begin the transaction, and so commit at its end what the caller may yet roll back."""
    return not connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE


@contextmanager
def _schema_expected() -> Iterator[None]:
    try:
        yield
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
        raise SchemaMissing from error
