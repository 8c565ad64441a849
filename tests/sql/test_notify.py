"""An enqueue notifies idle supervisors that serve the queue, and does not pay for a NOTIFY otherwise."""

from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from db import Connection, finish, go_on, insert, insert_held, spawn, value, with_store
from harness import Supervisor, eventually

from underway import Context, Done, To, Underway
from underway.definition.manifest import Placement
from underway.postgres import client_queries, schedule_queries
from underway.postgres.queries import statements
from underway.postgres.schedule_queries import Upcoming
from underway.postgres.supervisor_store import Store, job_parameters

OURS = uuid4()

app = Underway()


def works(cx: Context, number: int) -> Done[None]:
    return To.done()


plain = app.job("plain").step(works, queue="ours")
keyed = app.job("keyed").step(works, queue="ours", concurrency_key="key")


@pytest.fixture
def client(database: str) -> Iterator[Underway]:
    app.database.named = database
    app.sync()
    yield app
    app.close()
    app.database.named = None


@pytest.fixture
def heard(database: str, connection: Connection) -> Iterator[Callable[[], list[str]]]:
    """Returns the queues that were notified since the last call."""
    with psycopg.connect(database, autocommit=True) as listener:
        listener.execute("listen underway")

        def heard() -> list[str]:
            # Notifications arrive in order: when this one is here, so are the earlier ones.
            connection.execute("select pg_notify('underway', 'the last')")
            payloads: list[str] = []
            for notify in listener.notifies(timeout=10):
                if notify.payload == "the last":
                    return payloads
                payloads.append(notify.payload)
            raise AssertionError("no notification arrived")

        yield heard


def declare_idle(database: str, queues: Collection[str] | None) -> None:
    async def declare(store: Store) -> None:
        await store.register(pid=1, app="app")
        await store.set_idle(True, queues)

    with_store(database, declare, OURS)


def _schedule_fires(database: str, connection: Connection) -> None:
    at = datetime.now(UTC).replace(microsecond=0)
    plain.schedule("@daily", 1)
    connection.execute("update underway.schedule set next_at = %s", [at])

    async def fire(store: Store) -> None:
        schedule = Upcoming("plain", "default", "@daily", "UTC", "last", at, at)
        await schedule_queries.fire(store._work, schedule, [(uuid4(), at)], at, "works", Placement(queue="ours"))

    with_store(database, fire, OURS)


def _step_enqueues(database: str, connection: Connection) -> None:
    run, token = insert_held(connection, OURS)

    async def end(store: Store) -> None:
        assert await store.finish([finish(run, token)], [spawn(parent=token, queue="ours")])

    with_store(database, end, OURS)


def _step_hands_over(database: str, connection: Connection) -> None:
    run, token = insert_held(connection, OURS)

    async def hand_over(store: Store) -> None:
        assert await store.continue_([go_on(run, token, queue="ours")], [])

    with_store(database, hand_over, OURS)


def _key_is_granted(database: str, connection: Connection) -> None:
    key = {"queue": "ours", "concurrency_key": "key"}
    held, _ = insert_held(connection, OURS, holds_key=True, **key)
    insert(connection, state="waiting", due_at=None, **key)
    connection.execute(
        "update underway.run set state = 'pending', owner = null, lease_expires_at = null where holds_key"
    )
    connection.execute("select underway.cancel(%s)", [held])


def _delayed_run_is_promoted(database: str, connection: Connection) -> None:
    insert(connection, state="waiting", due_at="now", queue="ours")

    async def promote(store: Store) -> None:
        assert await store.promote(10) == 1

    with_store(database, promote, OURS)


# Every way in which the queue `ours` gets work.
WAYS: dict[str, Callable[[str, Connection], Any]] = {
    "enqueue": lambda database, connection: plain.enqueue(1),
    "enqueue with a key": lambda database, connection: keyed.enqueue(1),
    "enqueue many": lambda database, connection: plain.enqueue_many([1, 2, 3]),
    "enqueue from SQL": lambda database, connection: connection.execute("select underway.enqueue('plain', '1')"),
    "a schedule fires": _schedule_fires,
    "a step enqueues": _step_enqueues,
    "a step hands over": _step_hands_over,
    "a delayed run is promoted": _delayed_run_is_promoted,
    "a key is granted": _key_is_granted,
}


@pytest.mark.parametrize("way", WAYS)
def test_only_an_idle_supervisor_that_serves_the_queue_is_notified(
    client: Underway, database: str, connection: Connection, heard: Callable[[], list[str]], way: str
) -> None:
    for queues, notified in (({"theirs"}, False), ({"ours", "theirs"}, True), (set[str](), False), (None, True)):
        declare_idle(database, queues)
        heard()
        WAYS[way](database, connection)
        assert heard() == (["ours"] if notified else []), queues
        connection.execute("delete from underway.run")


def test_a_busy_supervisor_is_not_notified(
    client: Underway, database: str, connection: Connection, heard: Callable[[], list[str]]
) -> None:
    declare_idle(database, {"ours"})
    with_store(database, lambda store: store.set_idle(False, {"ours"}), OURS)
    plain.enqueue(1)
    assert heard() == []


def test_a_supervisor_of_an_older_version_is_notified_for_every_queue(
    client: Underway, database: str, connection: Connection, heard: Callable[[], list[str]]
) -> None:
    """It does not state its queues, neither when it registers nor when it goes idle."""
    connection.execute(
        """insert into underway.supervisor (id, host, pid, app, lanes)
        values (%(id)s, 'host', 1, 'app', '[]')
        on conflict (id) do update set seen_at = clock_timestamp(), idle = false, lanes = excluded.lanes""",
        {"id": OURS},
    )
    connection.execute("update underway.supervisor set idle = true, seen_at = clock_timestamp() where id = %s", [OURS])
    plain.enqueue(1)
    connection.execute("select underway.enqueue('plain', '1')")
    assert heard() == ["ours", "ours"]


def test_a_client_of_an_older_version_notifies_idle_supervisors(
    client: Underway, database: str, connection: Connection, heard: Callable[[], list[str]]
) -> None:
    declare_idle(database, {"ours"})
    connection.execute("select pg_notify('underway', 'ours') where exists (select from underway.supervisor where idle)")
    assert heard() == ["ours"]


APP = """
from underway import Context, Done, To, Underway

app = Underway()

def works(cx: Context) -> Done[None]:
    return To.done()

for queue in {queues}:
    app.job(queue).step(works, queue=queue)
"""


def test_a_queue_that_is_new_to_an_idle_supervisor_is_notified(
    connection: Connection, database: str, tmp_path: Path, start_supervisor: Callable[..., Supervisor]
) -> None:
    """Its workers restart with newer code, as after a crash during a deployment."""
    file = tmp_path / "served.py"
    file.write_text(APP.format(queues=["first"]))
    supervisor = start_supervisor(f"{file}:app", "--procs", "1")

    def declared(*queues: str) -> bool:
        query = "select coalesce(bool_and(idle and queues = %s::text[]), false) from underway.supervisor"
        return bool(value(connection, query, [sorted(queues)]))

    eventually(lambda: declared("first"))
    file.write_text(APP.format(queues=["first", "second"]))
    before = set(eventually(lambda: workers if len(workers := supervisor.workers()) == 2 else []))
    for worker in before:
        worker.kill()
    eventually(lambda: declared("first", "second"))
    placed = job_parameters("second", "works", Placement(queue="second"))
    connection.execute(statements()["register_job"], placed)
    run = value(connection, "select underway.enqueue('second')")
    eventually(lambda: client_queries.status(connection, run) == "succeeded")
