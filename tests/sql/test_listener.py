"""Notifications on a session that is used for statements too: heard between them and during them, always."""

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


class Listening:
    """A session that listens, and what it has heard so far."""

    def __init__(self, database: str) -> None:
        self.session = ReconnectingConnection(database)
        self.heard = 0
        self._came = asyncio.Event()
        self.wakeup = Wakeup(self.session, self._hear)

    def _hear(self, payload: str) -> None:
        self.heard += 1
        self._came.set()

    async def hears(self, seconds: float = SOON) -> bool:
        """Whether something comes in time, from now on."""
        self._came.clear()
        try:
            await asyncio.wait_for(self._came.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def pid(self) -> int:
        return (await self.session.open()).info.backend_pid


def listen(database: str, play: Callable[[Listening], Awaitable[None]], *, opened: bool = False) -> None:
    """Subscribe, play, close. With `opened` the session has a connection before anybody wants to hear of it."""

    async def main() -> None:
        listening = Listening(database)
        if opened:
            listening.session = ReconnectingConnection(database)
            await listening.session.open()
            listening.wakeup = Wakeup(listening.session, listening._hear)
        try:
            await listening.wakeup.subscribe()
            assert listening.wakeup.listening, "its echo has come"
            await play(listening)
        finally:
            await listening.session.close()

    asyncio.run(main())


def notify(connection: Connection) -> None:
    connection.execute("select pg_notify('underway', 'default')")


@pytest.mark.parametrize("opened", [False, True], ids=["opened by listening", "opened before"])
def test_a_notification_between_statements_is_heard(database: str, connection: Connection, opened: bool) -> None:
    async def play(listening: Listening) -> None:
        for _ in range(3):
            coming = asyncio.ensure_future(listening.hears())
            await asyncio.sleep(0)
            notify(connection)
            assert await coming

    listen(database, play, opened=opened)


@pytest.mark.parametrize("opened", [False, True], ids=["opened by listening", "opened before"])
def test_a_notification_during_a_statement_is_heard(database: str, connection: Connection, opened: bool) -> None:
    """The statement waits for a lock while it comes: only the driver reads the connection then."""

    async def play(listening: Listening) -> None:
        with psycopg.connect(database) as stranger:
            # A supervisor's statements wait for no row; this lock is on the table.
            stranger.execute("lock table underway.supervisor")
            pid, before = await listening.pid(), listening.heard
            statement = asyncio.ensure_future(listening.session.fetch("forget_supervisors"))
            waits = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
            while not value(connection, waits, [pid]):
                await asyncio.sleep(0.001)
            notify(connection)
            await asyncio.sleep(0)
            assert not statement.done()
            stranger.rollback()
        await statement
        assert listening.heard > before or await listening.hears()

    listen(database, play, opened=opened)


def test_nothing_is_missed_under_a_stream_of_statements(database: str, connection: Connection) -> None:
    """Whichever side of the statement's end a notification comes to."""

    async def play(listening: Listening) -> None:
        for _ in range(300):
            before = listening.heard
            statement = asyncio.ensure_future(listening.session.fetch("stop_requested", {"id": uuid4()}))
            await asyncio.to_thread(notify, connection)
            await statement
            assert listening.heard > before or await listening.hears()

    listen(database, play)


def test_its_own_echo_is_no_news(database: str) -> None:
    async def play(listening: Listening) -> None:
        # Once for what may have been missed before; a nonce that came back is not counted.
        assert listening.heard == 1
        await listening.wakeup.subscribe()
        assert listening.heard == 1
        assert listening.session.opened == 1

    listen(database, play)


def test_a_connection_that_breaks_while_it_is_idle_is_noticed_at_once_and_listened_to_again(
    database: str, connection: Connection
) -> None:
    async def play(listening: Listening) -> None:
        for turn in (1, 2, 3):
            paused = asyncio.ensure_future(listening.wakeup.rest(60))
            await asyncio.sleep(0)
            assert value(connection, "select pg_terminate_backend(%s, 10000)", [await listening.pid()])
            await asyncio.wait_for(paused, SOON)  # not after a minute
            before = listening.heard
            await listening.wakeup.subscribe()
            assert listening.session.opened == turn + 1
            assert listening.wakeup.listening
            assert listening.heard == before + 1  # whatever came while nobody listened
            coming = asyncio.ensure_future(listening.hears())
            await asyncio.sleep(0)
            notify(connection)
            assert await coming
        # And nothing is left over: it rests as long as it is told.
        begun = time.monotonic()
        await listening.wakeup.rest(0.2)
        assert time.monotonic() - begun >= 0.19

    listen(database, play)


def test_a_connection_that_breaks_under_a_statement_is_listened_to_again(database: str, connection: Connection) -> None:
    async def play(listening: Listening) -> None:
        with psycopg.connect(database) as stranger:
            stranger.execute("lock table underway.supervisor")
            pid = await listening.pid()
            statement = asyncio.ensure_future(listening.session.fetch("forget_supervisors"))
            while not value(connection, "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s", [pid]):
                await asyncio.sleep(0.001)
            assert value(connection, "select pg_terminate_backend(%s, 10000)", [pid])
            with pytest.raises(DatabaseUnavailable):
                await statement
        await listening.wakeup.subscribe()
        coming = asyncio.ensure_future(listening.hears())
        await asyncio.sleep(0)
        notify(connection)
        assert await coming

    listen(database, play)


class Swallowing(Proxy):
    """TCP is content: it takes all that it is sent, and passes nothing on."""

    swallows = False

    def _passed_on(self, data: bytes, *, from_server: bool) -> bytes:
        return b"" if self.swallows else data


def test_who_hears_nothing_for_longer_than_any_statement_takes_hangs_up(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconnecting, "ANSWER_SECONDS", 0.0)

    async def ask(proxy: Swallowing) -> None:
        asking = ReconnectingConnection(proxy.url)
        await asking.fetch("clock")
        proxy.swallows = True
        with pytest.raises(DatabaseUnavailable, match="closed"):
            await asking.fetch("clock", seconds=0.3)
        proxy.swallows = False
        assert await asking.fetch("clock"), "on a new connection"
        await asking.close()

    proxy = Swallowing(database, "be late")
    with proxy:
        asyncio.run(asyncio.wait_for(ask(proxy), 20))


@pytest.mark.parametrize("how", ["cancelled by the server", "refused for its data"])
def test_a_statement_that_fails_leaves_the_session_with_its_ears(
    database: str, connection: Connection, how: str
) -> None:
    """Its connection is good, and is not opened anew: so nobody will listen again."""

    async def play(listening: Listening) -> None:
        pid = await listening.pid()
        if how == "refused for its data":
            with pytest.raises(psycopg.DataError):
                await listening.session.fetch("promote_runs", {"limit": "no number", "since": 0, "passing_over": 0})
        else:
            with psycopg.connect(database) as stranger:
                stranger.execute("lock table underway.supervisor")
                statement = asyncio.ensure_future(listening.session.fetch("forget_supervisors"))
                waits = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
                while not value(connection, waits, [pid]):
                    await asyncio.sleep(0.001)
                connection.execute("select pg_cancel_backend(%s)", [pid])
                with pytest.raises(DatabaseUnavailable):
                    await statement
        assert await listening.pid() == pid
        coming = asyncio.ensure_future(listening.hears())
        await asyncio.sleep(0)
        notify(connection)
        assert await coming

    listen(database, play)


def test_a_session_that_rests_is_not_ended_by_what_a_role_says_of_idle_ones(
    database: str, connection: Connection
) -> None:
    name = sql.Identifier(connection.info.dbname)
    connection.execute(sql.SQL("alter database {} set idle_session_timeout = '50ms'").format(name))
    with_one = "select count(*) from pg_stat_activity where pid = %s"

    async def rest() -> None:
        paused = ReconnectingConnection(database)
        await paused.open()
        try:
            with psycopg.connect(database) as other:
                while value(connection, with_one, [other.info.backend_pid]):
                    await asyncio.sleep(0.01)
            await paused.fetch("clock")
            assert paused.opened == 1
        finally:
            await paused.close()

    asyncio.run(asyncio.wait_for(rest(), 20))


def test_a_statement_is_not_ended_by_what_a_role_says_of_long_transactions(
    database: str, connection: Connection
) -> None:
    """That ends the whole session. The parameter is unknown before PostgreSQL 17."""
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
    assert value(connection, pids) == 0, "the first of its two connections is closed"


def test_two_who_need_a_connection_at_once_share_one(database: str, connection: Connection) -> None:
    """One that was opened twice would be held, and never closed, by nobody."""
    backends = "select count(*) from pg_stat_activity where application_name = 'two at once'"

    async def main() -> None:
        listening = Listening(psycopg.conninfo.make_conninfo(database, application_name="two at once"))
        try:
            await asyncio.gather(
                listening.wakeup.subscribe(),
                *(listening.session.fetch("stop_requested", {"id": uuid4()}) for _ in range(3)),
            )
            assert listening.session.opened == 1
            assert value(connection, backends) == 1
            coming = asyncio.ensure_future(listening.hears())
            await asyncio.sleep(0)
            notify(connection)
            assert await coming
        finally:
            await listening.session.close()

    asyncio.run(main())
