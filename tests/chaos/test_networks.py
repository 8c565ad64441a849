"""Supervisors on separate hosts whose network drops all packets for longer than a lease, and recovers.

CHAOS_SEED determines which host and for how long, CHAOS_SECONDS how often.
"""

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from apps import transactions
from apps.transactions import Order
from chaos_report import Count, Say
from chaos_settings import SEED, stretched
from db import value
from harness import Supervisor, eventually, outcomes
from ledger_audit import RUNS_PER_TRANSFER, open_books
from netns import Host, Network, network

from underway.client.run import Run
from underway.postgres.embedded import Cluster
from underway.supervisor.exit_codes import ExitCode
from underway.testing.servers import SETTINGS, cluster_folder

SECONDS = stretched(45)
SETTLE_SECONDS = 180.0
RUNS = 5000
TRANSFERS = 400  # each consists of five runs
PARCELS = RUNS - TRANSFERS * RUNS_PER_TRANSFER

LEASE_SECONDS = 1.0  # of all steps here
# After this long a silent connection is closed: connection.py, the server for a step's transaction, and a margin.
TCP_SECONDS = 10.0
SLOW_SECONDS = 5.0  # a margin for a loaded machine

Start = Callable[..., Supervisor]

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(SECONDS + SETTLE_SECONDS + 120)]


@contextmanager
def server_on(lan: Network, database: str) -> Iterator[tuple[Cluster, str]]:
    """A server with an empty database, and its URL for the hosts. The test itself uses a socket, which is never cut."""
    address = lan.server.address
    with cluster_folder() as folder:
        cluster = Cluster(folder, settings={**SETTINGS, "listen_addresses": address})
        lan.server.inside(cluster.start)
        with (cluster.data / "pg_hba.conf").open("a") as access:
            access.write("host all all samenet trust\n")
        cluster.create_database(database)
        with psycopg.connect(cluster.url("postgres"), autocommit=True) as connection:
            connection.execute("select pg_reload_conf()")
        yield cluster, f"postgresql://postgres@{address}:5432/{database}"


class Hosts:
    """Two hosts beside a server; and the app `transactions`, whose step of the first attempt waits for the test."""

    def __init__(self, lan: Network, url: str, start: Start, connection: psycopg.Connection[Any]) -> None:
        self.lan = lan
        self.first, self.second = lan.hosts
        self._url = url
        self._start = start
        self.connection = connection

    def serve(self, host: Host, procs: int = 1) -> Supervisor:
        supervisor = host.inside(lambda: self._start("transactions", "--procs", str(procs), "--database", self._url))
        supervisor.until("serving")
        return supervisor

    def effects(self) -> list[tuple[Any, ...]]:
        return self.connection.execute("select run, step, attempt from effect").fetchall()


@pytest.fixture
def hosts(start_supervisor: Start) -> Iterator[Hosts]:
    with network(2) as lan, server_on(lan, "effects") as (cluster, url):
        transactions.app.database.named = cluster.url("effects")
        try:
            transactions.app.migrate()
            with psycopg.connect(cluster.url("effects"), autocommit=True) as connection:
                connection.execute(transactions.TABLES)
                yield Hosts(lan, url, start_supervisor, connection)
        finally:
            transactions.app.close()
            transactions.app.database.named = None


def running_step(folder: Path) -> psutil.Process:
    file = folder / "here"
    return psutil.Process(eventually(lambda: int(file.read_text() or 0) if file.exists() else 0))


def ended(run: Run[Any]) -> list[tuple[int, str]]:
    return [(attempt.number, attempt.outcome) for attempt in run.attempts()]


@pytest.mark.parametrize("seconds", [3.0, TCP_SECONDS + 5], ids=["a few leases", "longer than TCP waits"])
def test_a_step_is_killed_by_the_supervisors_own_clock_and_another_takes_over(
    hosts: Hosts, stage: Path, say: Say, count: Count, seconds: float
) -> None:
    cut_off = hosts.serve(hosts.first)
    run = transactions.leased.enqueue(Order("wait_in_python", folder=str(stage)))
    worker = running_step(stage)
    other = hosts.serve(hosts.second)
    hosts.lan.unplug(hosts.first)
    began, began_here = time.monotonic(), value(hosts.connection, "select clock_timestamp()")
    eventually(lambda: not worker.is_running(), within=LEASE_SECONDS + SLOW_SECONDS)
    killed_after = time.monotonic() - began
    assert run.result(SLOW_SECONDS * 2) == "survived"
    lost, survived = run.attempts()
    assert [lost.outcome, survived.outcome] == ["lost", "succeeded"]
    assert survived.started_at is not None
    taken_over_after = (survived.started_at - began_here).total_seconds()
    say(f"unplugged: killed after {killed_after:.2f} s, begun elsewhere after {taken_over_after:.2f} s")
    count(cuts=1, runs=1, leases_lapsed=1, peak_ms_until_it_was_killed=round(killed_after * 1000))
    assert killed_after < LEASE_SECONDS + 0.5 < taken_over_after + 0.5, (
        "its lease expired before another supervisor started the run"
    )
    assert killed_after < taken_over_after
    assert "killed: lease about to expire: it could not be renewed in time" in cut_off.log
    assert hosts.effects() == [(run.id, "do_in_the_end", 2)]

    time.sleep(max(0, began + seconds - time.monotonic()))
    hosts.lan.plug(hosts.first)
    healed = time.monotonic()
    other.send(signal.SIGTERM)
    assert other.wait() == ExitCode.CLEAN
    again = transactions.once.enqueue(Order("write_one", 2))
    assert again.result(TCP_SECONDS * 2) == 2, cut_off.log
    say(f"plugged in again: it worked after {time.monotonic() - healed:.2f} s")
    # The run that was taken from it has not continued there.
    assert ended(run) == [(1, "lost"), (2, "succeeded")]
    assert sorted(hosts.effects()) == sorted([(run.id, "do_in_the_end", 2), (again.id, "do", 1)])
    cut_off.send(signal.SIGTERM)
    assert cut_off.wait() == ExitCode.CLEAN


def test_a_result_that_waits_out_a_cut_shorter_than_its_lease_is_committed(
    hosts: Hosts, stage: Path, count: Count
) -> None:
    supervisor = hosts.serve(hosts.first)
    run = transactions.patient.enqueue(Order("meet_only", folder=str(stage)))
    running_step(stage)
    hosts.lan.unplug(hosts.first)
    (stage / "go").touch()
    eventually((stage / "gone").exists)
    time.sleep(2 * LEASE_SECONDS)  # the lease of this step is longer
    assert run.attempts() == []
    hosts.lan.plug(hosts.first)
    count(cuts=1, runs=1)
    assert run.result(TCP_SECONDS * 2) == 0, supervisor.log
    assert ended(run) == [(1, "succeeded")]


def test_a_hand_over_cut_off_before_its_commit_does_not_keep_the_run_from_others(
    hosts: Hosts, say: Say, count: Count
) -> None:
    """The step's transaction has locked the run and its COMMIT never arrives. Only the server can end it."""
    hosts.connection.execute(
        "create function dawdle() returns trigger language plpgsql as"
        " $$ begin if new.attempts = 0 and not exists (select from slow) then"
        " perform pg_sleep(2); end if; return null; end $$;"
        "create table slow (id int);"
        "create trigger dawdle after insert on underway.finished_run for each row execute function dawdle()"
    )
    hosts.serve(hosts.first)
    run = transactions.leased.enqueue(Order("write_one", 1))
    sleeps = "select from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database()"
    eventually(lambda: hosts.connection.execute(sleeps).fetchall())
    hosts.lan.unplug(hosts.first)
    began = time.monotonic()
    hosts.connection.execute("insert into slow values (1)")  # the next attempt is fast
    hosts.serve(hosts.second)
    assert run.result(2 + LEASE_SECONDS + 2 * TCP_SECONDS + SLOW_SECONDS) == "survived"
    count(cuts=1, runs=1, leases_lapsed=1)
    say(f"cut off in its hand-over: done elsewhere after {time.monotonic() - began:.1f} s")
    assert ended(run) == [(1, "lost"), (2, "succeeded")]
    assert hosts.effects() == [(run.id, "do_in_the_end", 2)]


def test_three_hosts_are_cut_off_and_healed_in_turn(start_supervisor: Start, say: Say, count: Count) -> None:
    rng = random.Random(SEED)
    with ExitStack() as stack:
        lan = stack.enter_context(network(3))
        cluster, url = stack.enter_context(server_on(lan, "ledger"))
        books = stack.enter_context(open_books(cluster.url("ledger"), rng, migrate=True))
        supervisors = [host.inside(lambda: start_supervisor("ledger", "--database", url)) for host in lan.hosts]
        for supervisor in supervisors:
            supervisor.until("serving")
        began = said = time.monotonic()
        cuts = 0
        while time.monotonic() < began + SECONDS:
            books.enqueue(min(20, TRANSFERS - books.transfers), min(150, PARCELS - books.parcels))
            time.sleep(rng.uniform(0.02, 0.3))
            host = lan.hosts[cuts % 3]
            lan.unplug(host)
            # Mostly a few leases, sometimes longer than connections survive, sometimes only a moment.
            time.sleep(rng.choice([rng.uniform(0.1, 0.9), rng.uniform(1, 4), rng.uniform(1, 4), TCP_SECONDS + 3]))
            lan.plug(host)
            cuts += 1
            time.sleep(rng.uniform(0, 0.5))
            if time.monotonic() > said + 5:
                said = time.monotonic()
                say(f"three hosts: {said - began:3.0f} s, {cuts} cuts; {books.progress()}")
        books.enqueue(TRANSFERS - books.transfers, PARCELS - books.parcels)
        assert books.runs == RUNS
        books.settle(SETTLE_SECONDS, say)
        say(f"three hosts: {cuts} cuts, settled after {time.monotonic() - began:.0f} s; {books.progress()}")
        count(cuts=cuts, peak_mib=max(supervisor.peak_mib for supervisor in supervisors))
        for supervisor in supervisors:
            assert supervisor.process.poll() is None, supervisor.log[-3000:]
            supervisor.send(signal.SIGTERM)
        assert [supervisor.wait() for supervisor in supervisors] == [ExitCode.CLEAN] * 3
        books.audit(count)
        with books.connect() as connection:
            assert outcomes(connection)["lost"] > 0, "none was cut off for long enough"
