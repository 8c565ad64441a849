"""Postgres goes away under load, in every way it may, and the books of what it has acknowledged stay exact.

CHAOS_SEED decides what happens, CHAOS_SECONDS for how long.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from books import Books, open_books
from harness import Supervisor, eventually, outcomes
from pgbouncer import pgbouncer
from psycopg.conninfo import make_conninfo

from underway.postgres.embedded import Cluster
from underway.supervisor.shutdown import ExitCode
from underway.testing.servers import SETTINGS, cluster_folder, temporary_cluster

SEED = int(os.environ.get("CHAOS_SEED", "1848"))
SECONDS = float(os.environ.get("CHAOS_SECONDS", "90")) / 3
SETTLE_SECONDS = 120.0

Start = Callable[..., Supervisor]
Say = Callable[[str], None]

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(SECONDS + SETTLE_SECONDS + 120)]


@contextmanager
def serving(start: Start, url: str) -> Iterator[list[Supervisor]]:
    """Two supervisors, who must outlive whatever happens and end with nothing left to kill."""
    supervisors = [start("ledger", "--database", url) for _ in range(2)]
    for supervisor in supervisors:
        supervisor.until("serving")  # before, it may still give up
    yield supervisors
    for supervisor in supervisors:
        assert supervisor.process.poll() is None, supervisor.log[-3000:]
        supervisor.send(signal.SIGTERM)
    assert [supervisor.wait() for supervisor in supervisors] == [ExitCode.CLEAN] * 2


def disturb(books: Books, name: str, say: Say, disturbance: Callable[[], None]) -> None:
    """Again and again, in the middle of work."""
    say(f"\n{name}: CHAOS_SEED={SEED}, {SECONDS:.0f} s")
    began = said = time.monotonic()
    count = 0
    while time.monotonic() < began + SECONDS:
        books.enqueue(books.rng.randint(5, 40))
        time.sleep(books.rng.uniform(0.1, 1.5))
        disturbance()
        count += 1
        if time.monotonic() > said + 5:
            said = time.monotonic()
            say(f"{name}: {said - began:3.0f} s, {count} times; {books.progress()}")
    books.settle(SETTLE_SECONDS, say)
    say(f"{name}: {count} times, settled after {time.monotonic() - began:.0f} s; {books.progress()}")


def test_postgres_is_stopped_immediately_and_started_again(start_supervisor: Start, say: Say) -> None:
    rng = random.Random(SEED)
    with temporary_cluster() as cluster:
        cluster.create_database("ledger")
        with open_books(cluster.url("ledger"), rng, migrate=True) as books:

            def restart() -> None:
                cluster.stop("immediate")
                time.sleep(3 * rng.random() ** 2)  # up to three leases
                cluster.start()

            with serving(start_supervisor, books.url):
                disturb(books, "stop and start", say, restart)
            books.audit()


def test_nothing_is_killed_after_an_outage_longer_than_a_lease(start_supervisor: Start, say: Say) -> None:
    """By supervisors that were idle, and claim as soon as they can."""
    with temporary_cluster() as cluster:
        cluster.create_database("ledger")
        with open_books(cluster.url("ledger"), random.Random(SEED), migrate=True) as books:
            books.enqueue(0, parcels=200)
            with books.connect() as connection:
                connection.execute("update underway.run set state = 'waiting', due = now() + interval '4 s'")
            with serving(start_supervisor, books.url) as supervisors:
                cluster.stop("immediate")
                time.sleep(6)
                cluster.start()
                books.settle(SETTLE_SECONDS, say)
            books.audit()
            for supervisor in supervisors:
                assert "killed" not in supervisor.log
            with books.connect() as connection:
                assert set(outcomes(connection)) == {"succeeded"}


def test_a_synchronous_standby_is_promoted(start_supervisor: Start, say: Say) -> None:
    rng = random.Random(SEED)
    with temporary_cluster() as primary, standby_of(primary) as standby:
        hosts = {"host": f"{primary.folder},{standby.folder}", "port": "5432,5432"}
        url = make_conninfo(dbname="ledger", user="postgres", target_session_attrs="read-write", **hosts)
        primary.create_database("ledger")
        with open_books(url, rng, migrate=True) as books, serving(start_supervisor, url):
            books.enqueue(100)
            eventually(lambda: "succeeded" in books.progress())
            books.enqueue(100)  # acknowledged by both, or the audit will miss them
            primary.stop("immediate")
            say(f"\nfailover: CHAOS_SEED={SEED}; the primary is gone")
            time.sleep(rng.uniform(0, 3))
            with psycopg.connect(standby.url("postgres"), autocommit=True) as connection:
                assert connection.execute("select pg_promote()").fetchone() == (True,)
            began = time.monotonic()
            say(f"failover: promoted; {books.progress()}")
            books.enqueue(100)
            books.settle(SETTLE_SECONDS, say)
            say(f"failover: settled after {time.monotonic() - began:.1f} s; {books.progress()}")
        books.audit()


@contextmanager
def standby_of(primary: Cluster) -> Iterator[Cluster]:
    """One that has everything that the primary has acknowledged from now on."""
    with cluster_folder(primary.bin_dir) as folder:
        standby = Cluster(folder, bin_dir=primary.bin_dir, settings=SETTINGS)
        source = f"host={primary.folder} port=5432 user=postgres"
        with standby._locked():
            standby._run("pg_basebackup", "-D", standby.data, "-d", source, "-R", "-c", "fast", "--no-sync")
        standby.start()
        with psycopg.connect(primary.url("postgres"), autocommit=True) as connection:
            # Only now, or the backup would have it too, and the standby once promoted would wait for one of its own.
            connection.execute("alter system set synchronous_standby_names = '*'")
            connection.execute("select pg_reload_conf()")
            synchronous = "select from pg_stat_replication where sync_state = 'sync'"
            eventually(lambda: connection.execute(synchronous).fetchall(), what="a synchronous standby")
        yield standby


def test_the_connections_of_pgbouncer_are_killed(
    database: str, start_supervisor: Start, tmp_path: Path, say: Say
) -> None:
    rng = random.Random(SEED)
    with pgbouncer(database, tmp_path) as url, open_books(database, rng) as books:

        def kill() -> None:
            """Some of those to the server, in which nobody knows whose statements are under way."""
            with books.connect() as connection:
                connection.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where datname = current_database() and pid <> pg_backend_pid() and random() < %s",
                    [rng.choice([0.3, 1.0])],
                )

        with serving(start_supervisor, url):
            disturb(books, "pgbouncer", say, kill)
        books.audit()
