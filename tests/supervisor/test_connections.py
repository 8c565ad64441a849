"""The number of connections of supervisors, and the detection of dead ones."""

import signal
import threading
import time
from collections.abc import Callable

import psutil
import psycopg
import pytest
from apps import basic
from db import Connection, value
from harness import Supervisor, eventually
from places import APPS
from proxy import Proxy

from underway import Underway
from underway.postgres.embedded import Cluster
from underway.testing.database import using_database
from underway.testing.servers import SETTINGS, cluster_folder

# The wait for an answer (reconnecting.py), the next poll, and a margin for a busy machine.
FOUND_SECONDS = 12 + 1 + 5
OURS = "select count(*)::int from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"

pytestmark = pytest.mark.chaos
Bind = Callable[[Underway], Underway]
Start = Callable[..., Supervisor]


@pytest.mark.timeout(240)
def test_64_workers_take_two_connections(bind: Bind, connection: Connection, start_supervisor: Start) -> None:
    bind(basic.app)
    basic.numbers.enqueue_many(range(5000))
    basic.app.close()
    supervisor = start_supervisor("basic", "--procs", "64", "--verbose")
    most = 0
    done = "select not exists (select from underway.run)"
    while supervisor.log.count("worker booted") < 65 or not value(connection, done):
        most = max(most, value(connection, OURS))
        time.sleep(0.02)
    assert 1 <= most <= 2


@pytest.mark.timeout(240)
def test_20_supervisors_start_together_at_a_server_for_100_connections(start_supervisor: Start) -> None:
    with cluster_folder() as folder:
        cluster = Cluster(folder, settings={**SETTINGS, "max_connections": "100"})
        cluster.start()
        cluster.create_database("crowded")
        url = cluster.url("crowded")
        with using_database(basic.app, url), psycopg.connect(url, autocommit=True) as connection:
            basic.app.migrate()
            basic.app.close()
            address = f"{APPS / 'basic'}.py:app"
            crowd = [start_supervisor(address, "--procs", "1", "--database", url) for _ in range(20)]
            most = 0
            while not all("serving" in supervisor.log for supervisor in crowd):
                assert all(supervisor.process.poll() is None for supervisor in crowd)
                most = max(most, value(connection, OURS))
                time.sleep(0.01)
            assert sum(run.result(20) for run in basic.numbers.enqueue_many(range(100))) == 4950
            basic.app.close()
            eventually(lambda: value(connection, OURS) == 40)
            assert most <= 40
            assert not any("too many clients" in supervisor.log for supervisor in crowd)
            for supervisor in crowd:
                supervisor.send(signal.SIGTERM)
            assert {supervisor.wait() for supervisor in crowd} == {0}


class HalfOpen(Proxy):
    """Connections that exist when `go_deaf` is called stay open, but no data passes on them any more."""

    def __init__(self, database: str) -> None:
        super().__init__(database, "be late")
        self.done = True  # all commits pass
        # Threads, not their IDs, because a new thread may reuse the ID of one that has ended.
        self._deaf: set[threading.Thread] = set()
        self._threads: set[threading.Thread] = set()

    def go_deaf(self) -> None:
        self._deaf = set(self._threads)

    def _passed_on(self, data: bytes, *, from_server: bool) -> bytes:
        thread = threading.current_thread()  # one thread for each connection
        self._threads.add(thread)
        return b"" if thread in self._deaf else data


def test_a_half_open_connection_is_replaced_and_its_work_is_found(
    bind: Bind, connection: Connection, database: str, start_supervisor: Start
) -> None:
    bind(basic.app)
    proxy = HalfOpen(database)
    with proxy:
        supervisor = start_supervisor("basic", "--database", proxy.url)
        idle = "select count(*) from underway.supervisor where idle"
        eventually(lambda: value(connection, idle) == 1, what="it waits for a notification")
        proxy.go_deaf()
        process = psutil.Process(supervisor.pid)
        cpu = sum(process.cpu_times()[:2])
        run = basic.numbers.enqueue(1)
        assert run.result(FOUND_SECONDS) == 1, supervisor.log
        assert sum(process.cpu_times()[:2]) - cpu < 2, "no busy loop while waiting"
        assert len(run.attempts()) == 1
        # It listens again: most runs are found earlier than by the poll.
        eventually(lambda: value(connection, idle) == 1)
        time.sleep(1)
        seconds = []
        for number in range(5):
            began = time.monotonic()
            assert basic.numbers.enqueue(number).result(5) == number
            seconds.append(time.monotonic() - began)
        assert sorted(seconds)[2] < 0.5
        supervisor.end()
