"""Queries: one definition that runs on sync and on async connections."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

import psycopg
import pytest
from db import Connection, value

from underway import SchemaMissing
from underway.postgres.query import (
    COMMITS_EACH_STATEMENT,
    BoundQuery,
    QuerySteps,
    Statement,
    atomic_query,
    fetch,
    query,
)

T = TypeVar("T")
Run: TypeAlias = Callable[[str, BoundQuery[T], bool], T]

PAUSED = "select array_agg(name order by name) from underway.queue where paused"


def run_sync(database: str, bound: BoundQuery[T], autocommit: bool = True) -> T:
    with psycopg.connect(database, autocommit=autocommit) as connection:
        return bound.run(connection)


def run_async(database: str, bound: BoundQuery[T], autocommit: bool = True) -> T:
    async def run() -> T:
        async with await psycopg.AsyncConnection.connect(database, autocommit=autocommit) as connection:
            return await bound.run_async(connection)

    return asyncio.run(run())


sync_and_async = pytest.mark.parametrize("run", [run_sync, run_async], ids=["sync", "async"])


def pause_steps(*names: str) -> QuerySteps[int]:
    for name in names:
        yield Statement("pause_queue", {"queue": name})
    return len(names)


pause_each = query(pause_steps)
pause_all = atomic_query(pause_steps)


@query
def explained() -> QuerySteps[None]:
    """Fails with an explanation."""
    try:
        yield Statement("pause_queue", {"queue": None})
    except psycopg.errors.NotNullViolation as error:
        raise KeyError("no name") from error


@query
def recovered() -> QuerySteps[int]:
    """Continues after a failed statement."""
    with suppress(psycopg.errors.NotNullViolation):
        yield Statement("pause_queue", {"queue": None})
    return (yield from pause_each.steps("after"))


@query
def commits_each_statement() -> QuerySteps[bool]:
    ((answer,),) = yield COMMITS_EACH_STATEMENT
    return bool(answer)


@sync_and_async
def test_a_query_and_its_converted_answer(run: Run[Any], database: str, connection: Connection) -> None:
    assert run(database, pause_each.bind("a", "b"), True) == 2
    assert run(database, pause_each.bind("c").then(str), True) == "1"
    assert run(database, pause_each.bind(), True) == 0
    assert value(connection, PAUSED) == ["a", "b", "c"]


@sync_and_async
def test_an_error_reaches_the_query_which_may_handle_it(run: Run[Any], database: str, connection: Connection) -> None:
    with pytest.raises(KeyError, match="no name") as raised:
        run(database, explained.bind(), True)
    assert isinstance(raised.value.__cause__, psycopg.errors.NotNullViolation)
    assert run(database, recovered.bind(), True) == 1
    assert value(connection, PAUSED) == ["after"]
    names: list[Any] = ["a", None]
    with pytest.raises(psycopg.errors.NotNullViolation):
        run(database, pause_each.bind(*names), True)
    assert value(connection, PAUSED) == ["a", "after"]


@sync_and_async
def test_an_atomic_query_takes_effect_as_a_whole(run: Run[Any], database: str, connection: Connection) -> None:
    def refuse(_: int) -> None:
        raise KeyError

    names: list[Any] = ["a", None]
    with pytest.raises(psycopg.errors.NotNullViolation):
        run(database, pause_all.bind(*names), True)
    with pytest.raises(KeyError):
        run(database, pause_all.bind("a").then(refuse), True)
    assert value(connection, PAUSED) is None


@sync_and_async
def test_a_query_learns_whether_each_statement_commits(run: Run[Any], database: str) -> None:
    assert run(database, commits_each_statement.bind(), True) is True
    assert run(database, commits_each_statement.bind(), False) is False


@sync_and_async
def test_a_missing_schema_is_reported(run: Run[Any], empty_database: str) -> None:
    with pytest.raises(SchemaMissing):
        run(empty_database, pause_each.bind("a"), True)


def test_a_callers_transaction_is_neither_committed_nor_ended(database: str, connection: Connection) -> None:
    with psycopg.connect(database) as caller:
        assert pause_all(caller, "a") == 1
        assert fetch(caller, "knows_queue", {"queue": "b"}) == [(False,)]
        assert value(connection, PAUSED) is None
        caller.rollback()
    assert value(connection, PAUSED) is None
