"""Enqueueing on the caller's psycopg connection, sync or async: part of its transaction, however it is configured."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Never, Protocol
from uuid import UUID

import psycopg
import pytest
from apps import clients
from apps.clients import Order
from db import value
from harness import Supervisor
from places import SUPPORT
from psycopg.pq import TransactionStatus
from psycopg.rows import RowFactory, dict_row, namedtuple_row, scalar_row
from psycopg.types.string import StrDumper, TextLoader

from underway import Context, Done, Job, PayloadError, SchemaMissing, Status, To, Underway, aio

Connection = psycopg.Connection[Any]
Bind = Callable[[Underway], Underway]


class Caller(Protocol):
    """What a caller does on its connection; each call on the async one runs to its end."""

    def enqueue(self, job: Job[Any, Never, Any], value: Any) -> UUID: ...
    def enqueue_many(self, job: Job[Any, Never, Any], values: Iterable[Any]) -> list[UUID]: ...
    def execute(self, query: str) -> None: ...
    def commit(self) -> None: ...
    def rollback(self) -> None: ...
    def pipeline(self, *calls: Callable[[], Any]) -> list[Any]: ...
    @property
    def status(self) -> TransactionStatus: ...
    def close(self) -> None: ...
    def close_loop(self) -> None: ...


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

    def close_loop(self) -> None:
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

    def close_loop(self) -> None:
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
        caller.close_loop()


def ids(connection: Connection) -> set[UUID]:
    return {row[0] for row in connection.execute("select id from underway.run").fetchall()}


def test_runs_exist_only_after_the_callers_commit(connect: Connect, connection: Connection) -> None:
    caller = connect()
    for end in (caller.rollback, caller.commit):
        made = {caller.enqueue(clients.orders, Order(1)), *caller.enqueue_many(clients.orders, [Order(2), Order(3)])}
        assert caller.status == TransactionStatus.INTRANS
        assert ids(connection) == set()
        end()
    assert ids(connection) == made


def test_a_call_that_begins_the_transaction_does_not_end_it(connect: Connect, connection: Connection) -> None:
    # psycopg's transaction() would commit a transaction that it began, even without autocommit.
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


def test_supervisors_are_notified_at_the_commit(connect: Connect, database: str, connection: Connection) -> None:
    connection.execute(
        "insert into underway.supervisor (id, host, pid, app, idle) values (gen_random_uuid(), 'host', 1, 'app', true)"
    )
    caller = connect()

    def heard() -> list[str]:
        # Notifications arrive in order: when this one is here, so are the earlier ones.
        connection.execute("select pg_notify('underway', 'the last')")
        payloads: list[str] = []
        for notify in listener.notifies(timeout=20):
            if notify.payload == "the last":
                break
            payloads.append(notify.payload)
        return payloads

    with psycopg.connect(database, autocommit=True) as listener:
        listener.execute("listen underway")
        caller.enqueue(clients.placed, 1)
        caller.rollback()
        assert heard() == []
        for enqueue in (caller.enqueue, lambda job, value: caller.enqueue_many(job, [value, value])):
            enqueue(clients.placed, 1)
            assert heard() == []
            caller.commit()
            assert heard() == ["slow"]


def test_on_an_autocommit_connection_each_call_commits(connect: Connect, connection: Connection) -> None:
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


# Connections as applications configure them


def text_loaders(connection: Any) -> None:
    for kind in ("uuid", "bool", "int8", "timestamptz"):
        connection.adapters.register_loader(kind, TextLoader)


class UpperCase(StrDumper):
    def dump(self, obj: str) -> bytes:
        return obj.upper().encode()


def other_dumpers(connection: Any) -> None:
    connection.adapters.register_dumper(str, UpperCase)
    connection.adapters.register_dumper(UUID, UpperCase)


def nothing(connection: Any) -> None:
    pass


# How the caller opens the connection, and how it configures it afterwards.
SHAPES: dict[str, tuple[dict[str, Any], Callable[[Any], None]]] = {
    "plain": ({}, nothing),
    "rows as dictionaries": ({"row_factory": dict_row}, nothing),
    "prepares everything": ({"prepare_threshold": 0}, nothing),
    "autocommit": ({"autocommit": True}, nothing),
    "loads text": ({}, text_loaders),
    "dumps upper case": ({}, other_dumpers),
    "LATIN1": ({"client_encoding": "latin1"}, nothing),
    "SQL_ASCII": ({"client_encoding": "sql_ascii"}, nothing),
    "German dates": ({"options": "-c datestyle=German"}, nothing),
    "no nulls in arrays": ({"options": "-c array_nulls=off"}, nothing),
    "no search path": ({"options": "-c search_path="}, nothing),
    "serializable": ({"options": "-c default_transaction_isolation=serializable"}, nothing),
}
SYNC_ONLY_SHAPES: dict[str, tuple[dict[str, Any], Callable[[Any], None]]] = {
    "client cursors": ({"cursor_factory": psycopg.ClientCursor}, nothing),
    "raw cursors": ({"cursor_factory": psycopg.RawCursor}, nothing),
}


@pytest.mark.parametrize("shape", [*SHAPES, *SYNC_ONLY_SHAPES])
def test_calls_work_on_a_connection_configured_in_any_way(
    bind: Bind, database: str, connection: Connection, shape: str
) -> None:
    """Every call that takes conn= returns and writes the same as on a plain connection."""
    bind(clients.app)
    options, prepare = (SHAPES | SYNC_ONLY_SHAPES)[shape]
    text = "ä€🦆\\"
    with psycopg.connect(database, **options) as caller:
        prepare(caller)
        runs = [clients.echoes.enqueue(text, conn=caller), *clients.echoes.enqueue_many([text, text], conn=caller)]
        runs += clients.echoes.enqueue_many([text, text], concurrency_key="c", conn=caller)
        keyed = clients.echoes.enqueue(text, unique_key="key", concurrency_key="c", conn=caller)
        again = clients.echoes.enqueue_many([text, text], unique_key="key", conn=caller)
        gone = clients.echoes.enqueue(text, delay=timedelta(days=1), conn=caller)
        assert gone.cancel(conn=caller) is True
        assert clients.echoes.cancel(unique_key="none", conn=caller) == 0
        schedule = clients.echoes.schedule("@daily", text, conn=caller)
        assert clients.app.pause("queue", conn=caller) is True
        assert clients.app.resume("queue", conn=caller) is True
    assert [run.created for run in [*runs, keyed, *again]] == [True] * 6 + [False, False]
    assert again == [keyed, keyed]
    assert schedule.next_slots() == [schedule.next_at]
    assert ids(connection) == {run.id for run in [*runs, keyed]}
    stored = "select input #>> '{}' from underway.run union all select input #>> '{}' from underway.schedule"
    assert connection.execute(stored).fetchall() == [(text,)] * 7
    found = connection.execute("select unique_key, concurrency_key, count(*) from underway.run group by 1, 2")
    assert sorted(found, key=str) == sorted([(None, None, 3), (None, "c", 2), ("key", "c", 1)], key=str)


@pytest.mark.parametrize("shape", SHAPES)
def test_async_calls_work_on_a_connection_configured_in_any_way(
    bind: Bind, database: str, connection: Connection, shape: str
) -> None:
    bind(clients.app)
    options, prepare = SHAPES[shape]
    text = "ä€🦆\\"

    async def use() -> list[aio.AsyncRun[Any]]:
        async with await psycopg.AsyncConnection.connect(database, **options) as caller:
            prepare(caller)
            runs = [await aio.enqueue(clients.echoes, text, unique_key="key", conn=caller)]
            runs += await aio.enqueue_many(clients.echoes, [text, text], conn=caller)
            runs += await aio.enqueue_many(clients.echoes, [text], unique_key="key", conn=caller)
            await aio.schedule(clients.echoes, "@daily", text, conn=caller)
            assert await runs[1].cancel(conn=caller) is True
            return runs

    runs = asyncio.run(use())
    assert [run.created for run in runs] == [True, True, True, False]
    assert ids(connection) == {runs[0].id, runs[2].id}
    stored = "select input #>> '{}' from underway.run union all select input #>> '{}' from underway.schedule"
    assert connection.execute(stored).fetchall() == [(text,)] * 3


def test_globally_registered_adapters_do_not_matter(database: str) -> None:
    """Runs in a separate process, because psycopg.adapters is global."""
    program = """
import psycopg
from psycopg.types.json import set_json_loads
from psycopg.types.string import TextLoader
for kind in ("uuid", "bool", "int8", "text", "jsonb"):
    psycopg.adapters.register_loader(kind, TextLoader)
set_json_loads(lambda data: "mine")
from apps import clients
run = clients.echoes.enqueue(1, unique_key="key")
again = clients.echoes.enqueue(1, unique_key="key")
print(type(run.id).__name__, run.created, again.created, run == again, clients.app.quarantined(), run.attempts())
"""
    environment = {"PATH": "/usr/bin:/bin", "UNDERWAY_DATABASE_URL": database, "PYTHONPATH": str(SUPPORT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "UUID True False True [] []\n", done.stderr


# Values of enqueue_many that run code of the caller


def numbers(database: str) -> Connection:
    caller: Connection = psycopg.connect(database)
    caller.execute("create table number as select generate_series(1, 5000) as n")
    return caller


def look_ups(caller: Connection) -> Iterator[str]:
    """Queries like those of an ORM's lazy loading."""
    for (n,) in caller.execute("select n from number").fetchall():
        (found,) = caller.execute("select n from number where n = %s", [n]).fetchone() or (None,)
        yield f"{found} {'x' * 200}"  # large enough for several COPYs


def from_a_server_side_cursor(caller: Connection) -> Iterator[str]:
    with caller.cursor(name="numbers") as rows:
        for (n,) in rows.execute("select n from number"):
            yield f"{n} {'x' * 200}"


def in_a_savepoint(caller: Connection) -> Iterator[str]:
    with caller.transaction():
        yield from look_ups(caller)


@pytest.mark.parametrize("values", [look_ups, from_a_server_side_cursor, in_a_savepoint])
@pytest.mark.parametrize("given", [{}, {"unique_key": "all of them"}], ids=["by copy", "with a key"])
def test_values_may_query_the_callers_connection(
    bind: Bind, database: str, connection: Connection, values: Callable[[Connection], Iterator[str]], given: Any
) -> None:
    bind(clients.app)
    with numbers(database) as caller:
        runs = clients.echoes.enqueue_many(values(caller), conn=caller, **given)
        assert len(runs) == 5000
        assert ids(connection) == set()
    assert ids(connection) == {run.id for run in runs}
    assert [run.created for run in runs[:2]] == [True, "unique_key" not in given]
    assert value(connection, "select input #>> '{}' from underway.run where id = %s", [runs[0].id]).startswith("1 ")


def test_values_that_fail_midway_leave_no_run(bind: Bind, database: str, connection: Connection) -> None:
    bind(clients.app)

    def failing(caller: Connection) -> Iterator[str]:
        yield from look_ups(caller)
        raise LookupError

    with numbers(database) as caller:
        with pytest.raises(LookupError):
            clients.echoes.enqueue_many(failing(caller), conn=caller)
        clients.echoes.enqueue("there", conn=caller)
    assert len(ids(connection)) == 1


def test_values_may_use_the_apps_own_connections(bind: Bind, connection: Connection) -> None:
    bind(clients.app)

    def enqueueing() -> Iterator[str]:
        for n in range(3000):
            if n % 1000 == 0:
                clients.echoes.enqueue("in between")
                clients.echoes.enqueue_many(["one", "two"])
                with clients.app.connection() as own:
                    own.execute("select 1")
            yield f"{n} {'x' * 200}"

    clients.echoes.enqueue_many(enqueueing())
    assert len(ids(connection)) == 3000 + 3 * 3


@dataclass
class Lazy:
    """Like a dataclass mapped by an ORM, it loads a column when the attribute is read."""

    n: int

    def __getattribute__(self, name: str) -> Any:
        if name == "n" and lazy_connections:
            return (lazy_connections[0].execute("select 7").fetchone() or (None,))[0]
        return super().__getattribute__(name)


lazy_connections: list[Connection] = []


def lazy(cx: Context, value: Lazy) -> Done:
    return To.done()


def test_values_may_load_their_attributes_lazily(bind: Bind, database: str) -> None:
    app = bind(Underway())
    job = app.job("lazy").step(lazy)
    with psycopg.connect(database) as caller:
        lazy_connections.append(caller)
        try:
            assert len(job.enqueue_many([Lazy(1), Lazy(2)], conn=caller)) == 2
        finally:
            lazy_connections.clear()


def test_enqueue_works_in_a_pipeline(connect: Connect, connection: Connection) -> None:
    caller = connect()
    made = caller.pipeline(
        lambda: caller.execute("select 1"),
        lambda: caller.enqueue(clients.orders, Order(1)),
        lambda: caller.execute("select 2"),
        lambda: caller.enqueue(clients.orders, Order(2)),
    )
    caller.commit()
    assert ids(connection) == set(made) - {None}
    # psycopg refuses COPY in a pipeline; whether the transaction survives is up to psycopg.
    with pytest.raises(psycopg.Error, match="pipeline"):
        caller.pipeline(lambda: caller.enqueue_many(clients.orders, [Order(3)]))
    caller.rollback()
    assert len(ids(connection)) == 2


def test_a_failed_transaction_raises_the_drivers_error(connect: Connect, connection: Connection) -> None:
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


def test_a_closed_connection_raises_the_drivers_error(connect: Connect) -> None:
    caller = connect()
    caller.close()
    with pytest.raises(psycopg.OperationalError, match="closed"):
        caller.enqueue(clients.orders, Order(1))


def test_a_database_without_our_schema_is_reported(connect: Connect, empty_database: str) -> None:
    caller = connect(empty_database)
    with pytest.raises(SchemaMissing):
        caller.enqueue(clients.orders, Order(1))
    caller.rollback()
    with pytest.raises(SchemaMissing):
        caller.enqueue_many(clients.orders, [])


def test_a_supervisor_runs_only_committed_runs(
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
