"""Notifications on a connection that also runs statements: they are heard between and during statements."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from uuid import uuid4

import psycopg
import pytest
from db import Connection, value
from proxy import Proxy
from psycopg import sql

from underway.postgres import reconnecting
from underway.postgres.listener import Wakeup
from underway.postgres.reconnecting import DatabaseUnavailable, ReconnectingConnection

SOON = 20.0


class Listener:
    """A connection that listens, and the number of notifications it has heard."""

    def __init__(self, database: str) -> None:
        self.connection = ReconnectingConnection(database)
        self.heard = 0
        self._arrived = asyncio.Event()
        self.wakeup = Wakeup(self.connection, self._hear)

    def _hear(self, payload: str) -> None:
        self.heard += 1
        self._arrived.set()

    async def hears(self, seconds: float = SOON) -> bool:
        """Whether a notification arrives within `seconds` from now."""
        self._arrived.clear()
        try:
            await asyncio.wait_for(self._arrived.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def pid(self) -> int:
        return (await self.connection.open()).info.backend_pid


def listen(database: str, play: Callable[[Listener], Awaitable[None]], *, opened: bool = False) -> None:
    """Subscribe, play, close. With `opened` the connection is open before the subscription."""

    async def main() -> None:
        listening = Listener(database)
        if opened:
            listening.connection = ReconnectingConnection(database)
            await listening.connection.open()
            listening.wakeup = Wakeup(listening.connection, listening._hear)
        try:
            await listening.wakeup.subscribe()
            assert listening.wakeup.listening, "the echo has arrived"
            await play(listening)
        finally:
            await listening.connection.close()

    asyncio.run(main())


def notify(connection: Connection) -> None:
    connection.execute("select pg_notify('underway', 'default')")


@pytest.mark.parametrize("opened", [False, True], ids=["opened by listening", "opened before"])
def test_a_notification_between_statements_is_heard(database: str, connection: Connection, opened: bool) -> None:
    async def play(listening: Listener) -> None:
        for _ in range(3):
            arrival = asyncio.ensure_future(listening.hears())
            await asyncio.sleep(0)
            notify(connection)
            assert await arrival

    listen(database, play, opened=opened)


@pytest.mark.parametrize("opened", [False, True], ids=["opened by listening", "opened before"])
def test_a_notification_during_a_statement_is_heard(database: str, connection: Connection, opened: bool) -> None:
    """While the statement waits for a lock, only the driver reads the connection."""

    async def play(listening: Listener) -> None:
        with psycopg.connect(database) as other_session:
            # Supervisor statements do not wait for row locks, so this lock is on the table.
            other_session.execute("lock table underway.supervisor")
            pid, before = await listening.pid(), listening.heard
            statement = asyncio.ensure_future(listening.connection.fetch("forget_supervisors"))
            waits = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
            while not value(connection, waits, [pid]):
                await asyncio.sleep(0.001)
            notify(connection)
            await asyncio.sleep(0)
            assert not statement.done()
            other_session.rollback()
        await statement
        assert listening.heard > before or await listening.hears()

    listen(database, play, opened=opened)


def test_no_notification_is_missed_during_a_stream_of_statements(database: str, connection: Connection) -> None:
    """A notification may arrive before or after the end of a statement."""

    async def play(listening: Listener) -> None:
        for _ in range(300):
            before = listening.heard
            statement = asyncio.ensure_future(listening.connection.fetch("stop_requested", {"id": uuid4()}))
            await asyncio.to_thread(notify, connection)
            await statement
            assert listening.heard > before or await listening.hears()

    listen(database, play)


def test_the_listeners_own_echo_is_not_counted(database: str) -> None:
    async def play(listening: Listener) -> None:
        # One for notifications that may have been missed before; a nonce that came back is not counted.
        assert listening.heard == 1
        await listening.wakeup.subscribe()
        assert listening.heard == 1
        assert listening.connection.opened == 1

    listen(database, play)


def test_a_connection_that_breaks_while_idle_wakes_its_loop_and_listens_again(
    database: str, connection: Connection
) -> None:
    async def play(listening: Listener) -> None:
        for turn in (1, 2, 3):
            paused = asyncio.ensure_future(listening.wakeup.rest(60))
            await asyncio.sleep(0)
            assert value(connection, "select pg_terminate_backend(%s, 10000)", [await listening.pid()])
            await asyncio.wait_for(paused, SOON)  # not after a minute
            before = listening.heard
            await listening.wakeup.subscribe()
            assert listening.connection.opened == turn + 1
            assert listening.wakeup.listening
            assert listening.heard == before + 1  # for notifications that may have been missed meanwhile
            arrival = asyncio.ensure_future(listening.hears())
            await asyncio.sleep(0)
            notify(connection)
            assert await arrival
        # No wake-up is left over: it rests for the full time.
        begun = time.monotonic()
        await listening.wakeup.rest(0.2)
        assert time.monotonic() - begun >= 0.19

    listen(database, play)


def test_a_connection_that_breaks_during_a_statement_listens_again(database: str, connection: Connection) -> None:
    async def play(listening: Listener) -> None:
        with psycopg.connect(database) as other_session:
            other_session.execute("lock table underway.supervisor")
            pid = await listening.pid()
            statement = asyncio.ensure_future(listening.connection.fetch("forget_supervisors"))
            while not value(connection, "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s", [pid]):
                await asyncio.sleep(0.001)
            assert value(connection, "select pg_terminate_backend(%s, 10000)", [pid])
            with pytest.raises(DatabaseUnavailable):
                await statement
        await listening.wakeup.subscribe()
        arrival = asyncio.ensure_future(listening.hears())
        await asyncio.sleep(0)
        notify(connection)
        assert await arrival

    listen(database, play)


class SwallowingProxy(Proxy):
    """Accepts all data, as TCP would acknowledge it, and forwards none."""

    swallows = False

    def _passed_on(self, data: bytes, *, from_server: bool) -> bytes:
        return b"" if self.swallows else data


def test_a_connection_whose_statement_gets_no_answer_is_closed(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnecting, "ANSWER_SECONDS", 0.0)

    async def play(proxy: SwallowingProxy) -> None:
        client = ReconnectingConnection(proxy.url)
        await client.fetch("clock")
        proxy.swallows = True
        with pytest.raises(DatabaseUnavailable, match="closed"):
            await client.fetch("clock", seconds=0.3)
        proxy.swallows = False
        assert await client.fetch("clock"), "on a new connection"
        await client.close()

    proxy = SwallowingProxy(database, "be late")
    with proxy:
        asyncio.run(asyncio.wait_for(play(proxy), 20))


@pytest.mark.parametrize("how", ["cancelled by the server", "refused for its data"])
def test_a_connection_still_listens_after_a_failed_statement(database: str, connection: Connection, how: str) -> None:
    """The connection is not reopened, so there is no new subscription."""

    async def play(listening: Listener) -> None:
        pid = await listening.pid()
        if how == "refused for its data":
            with pytest.raises(psycopg.DataError):
                await listening.connection.fetch(
                    "promote_runs", {"limit": "not a number", "since": 0, "passing_over": 0}
                )
        else:
            with psycopg.connect(database) as other_session:
                other_session.execute("lock table underway.supervisor")
                statement = asyncio.ensure_future(listening.connection.fetch("forget_supervisors"))
                waits = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
                while not value(connection, waits, [pid]):
                    await asyncio.sleep(0.001)
                connection.execute("select pg_cancel_backend(%s)", [pid])
                with pytest.raises(DatabaseUnavailable):
                    await statement
        assert await listening.pid() == pid
        arrival = asyncio.ensure_future(listening.hears())
        await asyncio.sleep(0)
        notify(connection)
        assert await arrival

    listen(database, play)


def test_an_idle_connection_is_not_ended_by_idle_session_timeout(database: str, connection: Connection) -> None:
    name = sql.Identifier(connection.info.dbname)
    connection.execute(sql.SQL("alter database {} set idle_session_timeout = '50ms'").format(name))
    with_one = "select count(*) from pg_stat_activity where pid = %s"

    async def rest() -> None:
        idle = ReconnectingConnection(database)
        await idle.open()
        try:
            with psycopg.connect(database) as other:
                while value(connection, with_one, [other.info.backend_pid]):
                    await asyncio.sleep(0.01)
            await idle.fetch("clock")
            assert idle.opened == 1
        finally:
            await idle.close()

    asyncio.run(asyncio.wait_for(rest(), 20))


def test_a_statement_is_not_ended_by_transaction_timeout(database: str, connection: Connection) -> None:
    """The timeout would end the whole session. It is unknown before PostgreSQL 17."""
    name = sql.Identifier(connection.info.dbname)
    connection.execute(sql.SQL("alter database {} set transaction_timeout = '50ms'").format(name))

    async def take_long() -> None:
        patient = ReconnectingConnection(database)
        try:
            await (await patient.open()).execute("select pg_sleep(0.3)")
            await patient.fetch("clock")
            assert patient.opened == 1
        finally:
            await patient.close()

    asyncio.run(asyncio.wait_for(take_long(), 20))
    pids = "select count(*) from pg_stat_activity where application_name = 'underway'"
    assert value(connection, pids) == 0, "the first connection, which found the timeout, is closed too"


def test_concurrent_users_of_a_connection_open_it_once(database: str, connection: Connection) -> None:
    """A second connection would never be closed."""
    backends = "select count(*) from pg_stat_activity where application_name = 'two at once'"

    async def main() -> None:
        listening = Listener(psycopg.conninfo.make_conninfo(database, application_name="two at once"))
        try:
            await asyncio.gather(
                listening.wakeup.subscribe(),
                *(listening.connection.fetch("stop_requested", {"id": uuid4()}) for _ in range(3)),
            )
            assert listening.connection.opened == 1
            assert value(connection, backends) == 1
            arrival = asyncio.ensure_future(listening.hears())
            await asyncio.sleep(0)
            notify(connection)
            assert await arrival
        finally:
            await listening.connection.close()

    asyncio.run(main())
