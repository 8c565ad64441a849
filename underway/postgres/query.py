"""Queries to Postgres that are defined once and run on a sync or an async connection.

A query is a generator that yields statements and is sent their rows. The generator says what is asked, in which order,
and what the rows mean. This module sends the statements, in one way for each kind of connection.
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
U = TypeVar("U")

Rows: TypeAlias = list[tuple[Any, ...]]
AnyConnection: TypeAlias = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]


class Statement(NamedTuple):
    """One of `sql/statements/*.sql`, by name. With `lines` it is a COPY of these lines.

    The driver holds the connection's lock for the duration of a COPY, so the code that produces `lines` must not use
    the connection: it would deadlock.
    """

    name: str
    parameters: Any = None
    lines: Iterable[bytes] | None = None


# Not sent to Postgres. Its one value is whether the connection commits each statement by itself.
COMMITS_EACH_STATEMENT = Statement("(commits each statement)")

QuerySteps: TypeAlias = Generator[Statement, Rows, T]


class Query(Generic[P, T]):
    """Runs on a psycopg.Connection by `query(connection, ...)`, on an AsyncConnection by `await query.run_async(...)`.

    Raises SchemaMissing if the database has no underway schema, and the errors of the driver.
    """

    def __init__(self, steps: Callable[P, QuerySteps[T]], *, atomic: bool = False) -> None:
        # For `yield from query.steps(...)` in another query, which then decides whether the whole is atomic.
        self.steps = steps
        self._atomic = atomic

    def __call__(self, connection: psycopg.Connection[Any], *args: P.args, **kwargs: P.kwargs) -> T:
        return self.bind(*args, **kwargs).run(connection)

    async def run_async(self, connection: psycopg.AsyncConnection[Any], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.bind(*args, **kwargs).run_async(connection)

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> "BoundQuery[T]":
        return BoundQuery(lambda: self.steps(*args, **kwargs), self._atomic)


class BoundQuery(Generic[T]):
    """A query with its arguments; it still needs a connection."""

    def __init__(self, steps: Callable[[], QuerySteps[T]], atomic: bool) -> None:
        self._steps = steps
        self._atomic = atomic

    def then(self, convert: Callable[[T], U]) -> "BoundQuery[U]":
        """The same query, with its answer converted."""

        def steps() -> QuerySteps[U]:
            return convert((yield from self._steps()))

        return BoundQuery(steps, self._atomic)

    def run(self, connection: psycopg.Connection[Any]) -> T:
        with _schema_expected(), ExitStack() as transaction:
            if self._atomic:
                if _would_commit(connection):
                    _answer(connection, _BEGIN)
                transaction.enter_context(connection.transaction())
            steps = self._steps()
            try:
                statement = next(steps)
                while True:
                    try:
                        rows = _answer(connection, statement)
                    except psycopg.Error as error:  # the query may know what it means
                        statement = steps.throw(error)
                    else:
                        statement = steps.send(rows)
            except StopIteration as end:
                answer: T = end.value
                return answer

    async def run_async(self, connection: psycopg.AsyncConnection[Any]) -> T:
        with _schema_expected():
            async with AsyncExitStack() as transaction:
                if self._atomic:
                    if _would_commit(connection):
                        await _answer_async(connection, _BEGIN)
                    await transaction.enter_async_context(connection.transaction())
                steps = self._steps()
                try:
                    statement = next(steps)
                    while True:
                        try:
                            rows = await _answer_async(connection, statement)
                        except psycopg.Error as error:
                            statement = steps.throw(error)
                        else:
                            statement = steps.send(rows)
                except StopIteration as end:
                    answer: T = end.value
                    return answer


def query(steps: Callable[P, QuerySteps[T]]) -> Query[P, T]:
    """Each statement is a transaction of its own, unless the caller has opened one."""
    return Query(steps)


def atomic_query(steps: Callable[P, QuerySteps[T]]) -> Query[P, T]:
    """All statements in one transaction, or in a savepoint of the caller's: all of them take effect, or none."""
    return Query(steps, atomic=True)


def fetch(connection: psycopg.Connection[Any], name: str, parameters: Any = None) -> Rows:
    """Rows of one named statement."""
    with _schema_expected():
        return _answer(connection, Statement(name, parameters))


# Any statement does: a connection that is not in autocommit begins a transaction for its first one.
_BEGIN = Statement("clock")

# Statements are never prepared: see ReconnectingConnection.
# In a pipeline the driver does not know whether there are rows before it fetches them; all our statements return some.


def _answer(connection: psycopg.Connection[Any], statement: Statement) -> Rows:
    if statement is COMMITS_EACH_STATEMENT:
        return _commits_each_statement(connection)
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
    if statement is COMMITS_EACH_STATEMENT:
        return _commits_each_statement(connection)
    text = statements()[statement.name]
    async with AsyncOwnCursor(connection) as cursor:
        if statement.lines is not None:
            async with cursor.copy(text) as copy:
                for line in statement.lines:
                    await copy.write(line)
            return []
        await cursor.execute(text, statement.parameters, prepare=False)
        return await cursor.fetchall() if cursor.description or connection.pgconn.pipeline_status else []


def _commits_each_statement(connection: AnyConnection) -> Rows:
    return [(connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE,)]


def _would_commit(connection: AnyConnection) -> bool:
    """Whether transaction() would begin the transaction, and so commit at its end what the caller may yet roll back."""
    return not connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE


@contextmanager
def _schema_expected() -> Iterator[None]:
    try:
        yield
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
        raise SchemaMissing from error
