"""Enqueueing on a psycopg connection of the caller's, sync or async: part of its transaction, whatever its kind."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Never, Protocol
from uuid import UUID

import psycopg
import pytest
from apps import clients
from apps.clients import Order
from harness import Supervisor
from psycopg.pq import TransactionStatus
from psycopg.rows import RowFactory, dict_row, namedtuple_row, scalar_row

from underway import Job, PayloadError, SchemaMissing, Status, Underway, aio

Connection = psycopg.Connection[Any]
Bind = Callable[[Underway], Underway]


class Caller(Protocol):
    """A caller's connection and what it does with it; the async one is driven from here, call by call."""

    def enqueue(self, job: Job[Any, Never, Any], value: Any) -> UUID: ...
    def enqueue_many(self, job: Job[Any, Never, Any], values: Iterable[Any]) -> list[UUID]: ...
    def execute(self, query: str) -> None: ...
    def commit(self) -> None: ...
    def rollback(self) -> None: ...
    def pipeline(self, *calls: Callable[[], Any]) -> list[Any]: ...
    @property
    def status(self) -> TransactionStatus: ...
    def close(self) -> None: ...
    def leave(self) -> None: ...


class SyncCaller:
    def __init__(self, url: str, **options: Any) -> None:
        self.connection: Connection = psycopg.connect(url, **options)

    def enqueue(self, job: Job[Any, Never, Any], value: Any) -> UUID:
        return job.enqueue(value, conn=self.connection).id

    def enqueue_many(self, job: Job[Any, Never, Any], values: Iterable[Any]) -> list[UUID]:
        return [run.id for run in job.enqueue_many(values, conn=self.connection)]

    def execute(self, query: Any) -> None:
        self.connection.execute(query)

    def commit(self) -> None:
        self.connection.commit()

    def rollback(self) -> None:
        self.connection.rollback()

    def pipeline(self, *calls: Callable[[], Any]) -> list[Any]:
        with self.connection.pipeline():
            return [call() for call in calls]

    @property
    def status(self) -> TransactionStatus:
        return self.connection.info.transaction_status

    def close(self) -> None:
        self.connection.close()

    def leave(self) -> None:
        pass


class AsyncCaller:
    def __init__(self, url: str, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self.connection: psycopg.AsyncConnection[Any] = self._do(psycopg.AsyncConnection.connect(url, **options))

    def _do(self, awaitable: Awaitable[Any]) -> Any:
        async def do() -> Any:
            return await awaitable

        return self._runner.run(do())

    def enqueue(self, job: Job[Any, Never, Any], value: Any) -> UUID:
        run_id: UUID = self._do(aio.enqueue(job, value, conn=self.connection)).id
        return run_id

    def enqueue_many(self, job: Job[Any, Never, Any], values: Iterable[Any]) -> list[UUID]:
        return [run.id for run in self._do(aio.enqueue_many(job, values, conn=self.connection))]

    def execute(self, query: Any) -> None:
        self._do(self.connection.execute(query))

    def commit(self) -> None:
        self._do(self.connection.commit())

    def rollback(self) -> None:
        self._do(self.connection.rollback())

    def pipeline(self, *calls: Callable[[], Any]) -> list[Any]:
        pipeline = self.connection.pipeline()
        self._do(pipeline.__aenter__())
        try:
            return [call() for call in calls]
        finally:
            self._do(pipeline.__aexit__(None, None, None))

    @property
    def status(self) -> TransactionStatus:
        return self.connection.info.transaction_status

    def close(self) -> None:
        self._do(self.connection.close())

    def leave(self) -> None:
        self._runner.close()


Connect = Callable[..., Caller]


@pytest.fixture(params=[SyncCaller, AsyncCaller], ids=["sync", "async"])
def connect(request: pytest.FixtureRequest, bind: Bind, database: str) -> Any:
    bind(clients.app)
    opened: list[Caller] = []

    def open_one(url: str = database, **options: Any) -> Caller:
        opened.append(request.param(url, **options))
        return opened[-1]

    yield open_one
    for caller in opened:
        caller.close()
        caller.leave()


def ids(connection: Connection) -> set[UUID]:
    return {row[0] for row in connection.execute("select id from underway.run").fetchall()}


def test_rolled_back_means_gone_committed_means_there(connect: Connect, connection: Connection) -> None:
    caller = connect()
    for end in (caller.rollback, caller.commit):
        made = {caller.enqueue(clients.orders, Order(1)), *caller.enqueue_many(clients.orders, [Order(2), Order(3)])}
        assert caller.status == TransactionStatus.INTRANS
        assert ids(connection) == set()
        end()
    assert ids(connection) == made


def test_what_begins_a_transaction_does_not_end_it(connect: Connect, connection: Connection) -> None:
    # psycopg's transaction() commits what it has begun, also on a connection that is not in autocommit
    caller = connect()
    caller.enqueue_many(clients.orders, [Order(1), Order(2)])
    assert caller.status == TransactionStatus.INTRANS
    caller.rollback()
    assert ids(connection) == set()
    with pytest.raises(PayloadError):
        caller.enqueue_many(clients.orders, [Order(1), Order("x")])  # type: ignore[arg-type]
    made = caller.enqueue_many(clients.orders, [Order(3)])
    caller.commit()
    assert ids(connection) == set(made)


def test_committed_means_woken(connect: Connect, connection: Connection) -> None:
    connection.execute("listen underway")
    connection.execute(
        "insert into underway.supervisor (id, host, pid, app, manifest_hash, idle) "
        "values (gen_random_uuid(), 'host', 1, 'app', '', true)"
    )
    caller = connect()

    def heard() -> list[str]:
        return [told.payload for told in connection.notifies(timeout=0.1)]

    caller.enqueue(clients.placed, 1)
    caller.rollback()
    assert heard() == []
    for enqueue in (caller.enqueue, lambda job, value: caller.enqueue_many(job, [value, value])):
        enqueue(clients.placed, 1)
        assert heard() == []
        caller.commit()
        assert heard() == ["slow"]


def test_on_an_autocommit_connection_it_is_there_at_once(connect: Connect, connection: Connection) -> None:
    caller = connect(autocommit=True)
    made = {caller.enqueue(clients.orders, Order(1))}
    assert ids(connection) == made
    made |= set(caller.enqueue_many(clients.orders, [Order(2), Order(3)]))
    assert ids(connection) == made
    assert caller.status is TransactionStatus.IDLE
    # all or nothing even here
    with pytest.raises(PayloadError, match=r"^value 1: "):
        caller.enqueue_many(clients.orders, [Order(4), Order("x")])  # type: ignore[arg-type]
    assert ids(connection) == made
    assert caller.status is TransactionStatus.IDLE


@pytest.mark.parametrize("row_factory", [dict_row, namedtuple_row, scalar_row])
def test_the_row_factory_does_not_matter(
    connect: Connect, connection: Connection, row_factory: RowFactory[Any]
) -> None:
    caller = connect(row_factory=row_factory)
    made = {caller.enqueue(clients.orders, Order(1)), *caller.enqueue_many(clients.orders, [Order(2)])}
    caller.commit()
    assert ids(connection) == made


def test_in_a_pipeline(connect: Connect, connection: Connection) -> None:
    caller = connect()
    made = caller.pipeline(
        lambda: caller.execute("select 1"),
        lambda: caller.enqueue(clients.orders, Order(1)),
        lambda: caller.execute("select 2"),
        lambda: caller.enqueue(clients.orders, Order(2)),
    )
    caller.commit()
    assert ids(connection) == set(made) - {None}
    # COPY there is none in a pipeline; the driver says so, and the transaction goes on or not as its rules are
    with pytest.raises(psycopg.Error, match="pipeline"):
        caller.pipeline(lambda: caller.enqueue_many(clients.orders, [Order(3)]))
    caller.rollback()
    assert len(ids(connection)) == 2


def test_in_a_failed_transaction_the_driver_says_so(connect: Connect, connection: Connection) -> None:
    caller = connect()
    with pytest.raises(psycopg.errors.UndefinedTable):
        caller.execute("select * from nowhere")
    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        caller.enqueue(clients.orders, Order(1))
    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        caller.enqueue_many(clients.orders, [Order(1)])
    caller.rollback()
    made = caller.enqueue(clients.orders, Order(1))
    caller.commit()
    assert ids(connection) == {made}


def test_on_a_closed_connection_the_driver_says_so(connect: Connect) -> None:
    caller = connect()
    caller.close()
    with pytest.raises(psycopg.OperationalError, match="closed"):
        caller.enqueue(clients.orders, Order(1))


def test_in_a_database_without_our_schema(connect: Connect, empty_database: str) -> None:
    caller = connect(empty_database)
    with pytest.raises(SchemaMissing):
        caller.enqueue(clients.orders, Order(1))
    caller.rollback()
    with pytest.raises(SchemaMissing):
        caller.enqueue_many(clients.orders, [])


def test_a_supervisor_runs_what_was_committed(
    connect: Connect, connection: Connection, start_supervisor: Callable[..., Supervisor]
) -> None:
    caller = connect()
    gone = caller.enqueue(clients.echoes, "gone")
    caller.rollback()
    made = caller.enqueue(clients.echoes, "there")
    caller.commit()
    start_supervisor("clients", "--procs", "1", "--until-idle").wait()
    assert clients.app.get_run(made).status() is Status.SUCCEEDED
    assert connection.execute("select id from underway.runs").fetchall() == [(made,)]
    assert gone != made
