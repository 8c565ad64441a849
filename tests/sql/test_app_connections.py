"""The app's own connections, sync and async: broken idle connections are replaced, and no caller starves."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, suppress
from typing import Any, TypeAlias, TypeVar
from uuid import UUID

import psycopg
import pytest
from apps import clients
from apps.clients import Order
from db import Connection, value
from harness import eventually
from proxy import Proxy
from psycopg_pool import PoolTimeout

from underway import Underway, aio
from underway.postgres import pools
from underway.testing import using_database
from underway.testing.servers import temporary_cluster

T = TypeVar("T")
AT_ONCE = 4  # the size of a pool


class Sync:
    """Four threads that use the app concurrently."""

    def each(self, use: Callable[[], T]) -> list[T]:
        with ThreadPoolExecutor(AT_ONCE) as threads:
            return [future.result(20) for future in [threads.submit(use) for _ in range(AT_ONCE)]]

    def enqueue(self, **given: Any) -> list[UUID]:
        return self.each(lambda: clients.orders.enqueue(Order(1), **given).id)

    def hold(self, app: Underway) -> None:
        together = threading.Barrier(AT_ONCE, timeout=20)

        def held() -> None:
            with app.connection() as connection:
                connection.execute("select 1")
                together.wait()
                clients.orders.enqueue(Order(1))
                clients.orders.enqueue_many([Order(2)])
                together.wait()

        self.each(held)

    def hold_one_too_many(self, app: Underway) -> None:
        with ExitStack() as held:
            for _ in range(AT_ONCE):
                held.enter_context(app.connection())
            app.database.pools()._held.timeout = 0.1
            held.enter_context(app.connection())

    def close(self, app: Underway) -> None:
        app.close()


class Async:
    """Four asyncio tasks that use the app concurrently."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()

    def each(self, use: Callable[[], Coroutine[Any, Any, T]]) -> list[T]:
        async def gather_all() -> list[T]:
            async with asyncio.timeout(20):
                return await asyncio.gather(*(use() for _ in range(AT_ONCE)))

        return self._runner.run(gather_all())

    def enqueue(self, **given: Any) -> list[UUID]:
        async def one() -> UUID:
            return (await aio.enqueue(clients.orders, Order(1), **given)).id

        return self.each(one)

    def hold(self, app: Underway) -> None:
        together = asyncio.Barrier(AT_ONCE)

        async def held() -> None:
            async with aio.connection(app) as connection:
                await connection.execute("select 1")
                await together.wait()
                await aio.enqueue(clients.orders, Order(1))
                await aio.enqueue_many(clients.orders, [Order(2)])
                await together.wait()

        self.each(held)

    def hold_one_too_many(self, app: Underway) -> None:
        async def hold() -> None:
            async with AsyncExitStack() as held:
                for _ in range(AT_ONCE):
                    await held.enter_async_context(aio.connection(app))
                (await app.database.pools_async())._held.timeout = 0.1
                await held.enter_async_context(aio.connection(app))

        self._runner.run(hold())

    def close(self, app: Underway) -> None:
        self._runner.run(aio.close(app))
        self._runner.close()


Side: TypeAlias = Sync | Async


@pytest.fixture
def app(bind: Callable[[Underway], Underway]) -> Underway:
    return bind(clients.app)


@pytest.fixture(params=[Sync, Async], ids=["sync", "async"])
def side(request: pytest.FixtureRequest, app: Underway) -> Iterator[Side]:
    side: Side = request.param()
    yield side
    side.close(app)


def open_all(side: Side, database: str) -> None:
    """Fills the pool: four enqueues that wait for the same unique key need a connection each."""
    with psycopg.connect(database) as key_holder, psycopg.connect(database, autocommit=True) as observer:
        clients.orders.enqueue(Order(0), unique_key="the key", conn=key_holder)

        def release() -> None:
            eventually(lambda: waiting(observer) == AT_ONCE)
            key_holder.rollback()

        thread = threading.Thread(target=release)
        thread.start()
        assert len(set(side.enqueue(unique_key="the key"))) == 1
        thread.join()
        assert len(backends(observer)) == AT_ONCE


def waiting(observer: Connection) -> int:
    return len(backends(observer, "and wait_event_type = 'Lock'"))


def backends(observer: Connection, which: Any = "") -> list[int]:
    """The PIDs of the app's sessions."""
    query = "select pid from pg_stat_activity where datname = current_database() and application_name = 'underway' "
    return [pid for (pid,) in observer.execute(query + which)]


# Idle connections


def test_sessions_that_the_server_terminated_are_replaced(side: Side, database: str, connection: Connection) -> None:
    open_all(side, database)
    for pid in backends(connection):
        connection.execute("select pg_terminate_backend(%s, 5000)", [pid])
    assert len(side.enqueue()) == AT_ONCE


def test_sessions_ended_by_idle_session_timeout_are_replaced(side: Side, database: str, connection: Connection) -> None:
    connection.execute(f'alter database "{connection.info.dbname}" set idle_session_timeout = 300')
    for _ in range(2):
        side.enqueue()
        eventually(lambda: not backends(connection))
    assert len(side.enqueue()) == AT_ONCE


def test_app_connection_checks_a_connection_before_lending_it(app: Underway, connection: Connection) -> None:
    for _ in range(2):
        with app.connection() as held:
            (pid,) = held.execute("select pg_backend_pid()").fetchone() or (None,)
        connection.execute("select pg_terminate_backend(%s, 5000)", [pid])


def test_a_connection_that_breaks_in_use_fails_only_its_user(app: Underway, connection: Connection) -> None:
    with app.connection() as held:
        (pid,) = held.execute("select pg_backend_pid()").fetchone() or (None,)
        connection.execute("select pg_terminate_backend(%s, 5000)", [pid])
        with pytest.raises(psycopg.OperationalError):
            held.execute("select 1")
    with app.connection() as held:
        held.execute("select 1")


def test_a_parameter_report_to_an_idle_session_does_not_end_it(app: Underway, connection: Connection) -> None:
    clients.orders.enqueue(Order(1))
    (pid,) = backends(connection)
    # Changes of this parameter are reported to clients without a request.
    connection.execute("alter system set DateStyle to 'German'")
    try:
        connection.execute("select pg_reload_conf()")
        eventually(lambda: value(connection, "show DateStyle") == "German, DMY")
        clients.orders.enqueue(Order(1))
        assert backends(connection) == [pid]
    finally:
        connection.execute("alter system reset DateStyle")
        connection.execute("select pg_reload_conf()")


class SilentProxy(Proxy):
    """Silently drops the data of the connections that are currently open."""

    def __init__(self, database: str) -> None:
        super().__init__(database, "not at all")
        self.done = True
        self._silent: set[threading.Thread] = set()

    def fall_silent(self) -> None:
        self._silent = set(threading.enumerate())  # each connection has a thread

    def _passed_on(self, data: bytes, *, from_server: bool) -> bytes:
        return b"" if threading.current_thread() in self._silent else data


def test_connections_that_a_proxy_silently_drops_are_replaced(
    side: Side, app: Underway, database: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(pools, "_RESTED_SECONDS", 0.0)
    monkeypatch.setattr(pools, "_ANSWER_SECONDS", 0.2)
    proxy = SilentProxy(database)
    with proxy, using_database(app, proxy.url):
        side.enqueue()
        proxy.fall_silent()
        assert len(side.enqueue()) == AT_ONCE


def test_enqueues_during_a_quick_restart_wait_for_the_server(bind: Callable[[Underway], Underway]) -> None:
    """Idle connections are replaced, and an enqueue during a quick restart waits until the server is back."""
    with temporary_cluster() as cluster, ThreadPoolExecutor(AT_ONCE) as threads:
        cluster.create_database("restarts")
        with using_database(clients.app, cluster.url("restarts")):
            clients.app.migrate()
            Sync().enqueue()
            cluster.stop("immediate")
            made = [threads.submit(clients.orders.enqueue, Order(1)) for _ in range(AT_ONCE)]
            cluster.start()
            assert len({run.result(60).id for run in made}) == AT_ONCE
            assert len(Sync().enqueue()) == AT_ONCE


@pytest.mark.parametrize("side", [Sync, Async])
def test_an_error_says_that_the_server_is_down(side: type[Side], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first calls after the server's return succeed, however long it was down."""
    monkeypatch.setattr(pools, "_AWAY_SECONDS", 0.1)
    monkeypatch.setattr(pools, "_ASK_SECONDS", 0.1)
    with temporary_cluster() as cluster:
        cluster.create_database("stopped")
        with using_database(clients.app, cluster.url("stopped")):
            clients.app.migrate()
            calls = side()
            calls.enqueue()
            cluster.stop("immediate")
            for _ in range(5):
                with pytest.raises(psycopg.OperationalError, match=r"(?i)no such file|refused") as raised:
                    calls.enqueue()
                assert not isinstance(raised.value, PoolTimeout)
            cluster.start()
            assert len(calls.enqueue()) == AT_ONCE
            calls.close(clients.app)


# Lent connections


def test_callers_that_hold_all_lent_connections_can_still_enqueue(
    side: Side, app: Underway, connection: Connection
) -> None:
    side.hold(app)
    assert value(connection, "select count(*) from underway.run") == 2 * AT_ONCE


def test_an_exhausted_pool_says_how_its_connections_are_used(side: Side, app: Underway) -> None:
    with pytest.raises(PoolTimeout, match=r"all 4 connections that app.connection\(\) lends were in use") as raised:
        side.hold_one_too_many(app)
    assert "open none inside another" in str(raised.value)


# Interruptions while the first connection opens


class InterruptingProxy(Proxy):
    """Calls `then` while the server's first answer is being forwarded."""

    def _passed_on(self, data: bytes, *, from_server: bool) -> bytes:
        if from_server and not self.done:
            self.done = True
            self._then()
        return data


def test_a_signal_handler_can_enqueue_while_the_first_connection_opens(
    app: Underway, database: str, connection: Connection
) -> None:
    handled = threading.Event()

    def handle(*_: object) -> None:
        clients.orders.enqueue(Order(2))
        handled.set()

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert handled.wait(20)

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with InterruptingProxy(database, "not at all", interrupt) as proxy, using_database(app, proxy.url):
            clients.orders.enqueue(Order(1))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert value(connection, "select count(*) from underway.run") == 2


class Interrupted(BaseException):
    pass


def test_a_signal_handler_that_raises_in_a_waiting_call_leaks_no_connection(
    app: Underway, connection: Connection
) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupted

    with ExitStack() as held:
        for _ in range(AT_ONCE):
            held.enter_context(app.connection())
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            for _ in range(2 * AT_ONCE):
                signal.setitimer(signal.ITIMER_REAL, 0.05)
                # The first replaced pool has connections, so a later call may get one before the signal comes.
                with pytest.raises(Interrupted), app.connection():
                    signal.pause()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    with ExitStack() as held:
        for _ in range(AT_ONCE):
            held.enter_context(app.connection())


def test_a_child_forked_while_a_thread_opens_the_first_connection_can_enqueue(app: Underway) -> None:
    opening, forked = threading.Event(), threading.Event()

    def open_slowly() -> None:
        with app.database._process_pools.opening():
            opening.set()
            forked.wait(20)

    thread = threading.Thread(target=open_slowly)
    thread.start()
    assert opening.wait(20)
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            signal.alarm(20)
            clients.orders.enqueue(Order(2))
            app.close()
            os._exit(0)
        os._exit(1)
    forked.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0
