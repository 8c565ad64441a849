"""Outages of Postgres under load, of every kind: everything that it has acknowledged is accounted for.

CHAOS_SEED determines what happens, CHAOS_SECONDS for how long.
"""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from apps import basic, blocking
from chaos_report import Count, Say
from chaos_settings import MINUTE, SEED, stretched
from db import Connection
from harness import Supervisor, eventually, outcomes
from ledger_audit import Books, open_books, serving
from pgbouncer import pgbouncer
from psycopg.conninfo import make_conninfo

from underway import Status, Underway
from underway.testing.servers import temporary_cluster

SECONDS = stretched(20)
LONG_SECONDS = stretched(10 * MINUTE)
SETTLE_SECONDS = 120.0
MOST_LIVE = 400  # no more runs are enqueued: enough for every outage, and few enough to be finished soon

Start = Callable[..., Supervisor]


def limit(seconds: float) -> pytest.MarkDecorator:
    return pytest.mark.timeout(seconds + SETTLE_SECONDS + 120)


def disturb(
    books: Books, say: Say, disturbance: Callable[[], None], pauses: Iterator[float], seconds: float = SECONDS
) -> int:
    """Repeat it after pauses, while work is in progress. Returns how often."""
    began = said = time.monotonic()
    times = 0
    while time.monotonic() < began + seconds:
        until = time.monotonic() + next(pauses)
        while time.monotonic() < until:
            if books.left() < MOST_LIVE:
                books.enqueue(books.rng.randint(5, 20), parcels=books.rng.randint(0, 100))
            time.sleep(0.05)
        disturbance()
        times += 1
        if time.monotonic() > said + 5:
            said = time.monotonic()
            say(f"{said - began:.0f} of {seconds:.0f} s, {times} times; {books.progress()}")
    books.settle(SETTLE_SECONDS, say)
    say(f"{times} times, settled after {time.monotonic() - began:.0f} s; {books.progress()}")
    return times


def pauses_between(rng: random.Random, least: float, most: float) -> Iterator[float]:
    while True:
        yield rng.uniform(least, most)


@pytest.mark.chaos
@limit(SECONDS)
def test_postgres_is_stopped_immediately_and_started_again(start_supervisor: Start, say: Say, count: Count) -> None:
    stop_and_start(start_supervisor, say, count, (0.1, 1.5), SECONDS)


@pytest.mark.chaos_long
@limit(LONG_SECONDS)
def test_postgres_is_stopped_immediately_and_started_again_for_ten_minutes(
    start_supervisor: Start, say: Say, count: Count
) -> None:
    stop_and_start(start_supervisor, say, count, (5, 40), LONG_SECONDS, procs=4)


def stop_and_start(
    start: Start, say: Say, count: Count, pauses: tuple[float, float], seconds: float, procs: int = 2
) -> None:
    rng = random.Random(
        SEED
    )  # separate from that of the books, whose number of draws depends on the speed of the machine
    with temporary_cluster() as cluster:
        cluster.create_database("ledger")
        with open_books(cluster.url("ledger"), random.Random(SEED), migrate=True) as books:

            def restart() -> None:
                cluster.stop("immediate")
                time.sleep(3 * rng.random() ** 2)  # up to three leases
                cluster.start()

            with serving(start, books.url, count, procs):
                count(immediate_stops=disturb(books, say, restart, pauses_between(rng, *pauses), seconds))
            books.audit(count)


@pytest.mark.chaos
@limit(0)
def test_nothing_is_killed_after_an_outage_longer_than_a_lease(start_supervisor: Start, say: Say, count: Count) -> None:
    """By supervisors that were idle, and claim as soon as they can connect."""
    with temporary_cluster() as cluster:
        cluster.create_database("ledger")
        with open_books(cluster.url("ledger"), random.Random(SEED), migrate=True) as books:
            books.enqueue(0, parcels=200)
            with books.connect() as connection:
                connection.execute("update underway.run set state = 'waiting', due_at = now() + interval '4 s'")
            with serving(start_supervisor, books.url, count) as supervisors:
                cluster.stop("immediate")
                time.sleep(6)
                cluster.start()
                count(immediate_stops=1)
                books.settle(SETTLE_SECONDS, say)
            books.audit(count)
            for supervisor in supervisors:
                assert "killed" not in supervisor.log
            with books.connect() as connection:
                assert set(outcomes(connection)) == {"succeeded"}


@pytest.mark.chaos
@limit(0)
def test_a_table_lock_longer_than_a_lease_charges_no_run(
    database: str, bind: Callable[[Underway], Underway], start_supervisor: Start, stage: Path
) -> None:
    """An ALTER TABLE or a VACUUM FULL: connections stay open, but leases cannot be renewed."""
    bind(blocking.app)
    runs = [blocking.patient.enqueue(name) for name in ("a", "b", "c", "d")]
    supervisors = [start_supervisor("blocking", "--procs", "2", env={"FOLDER": str(stage)}) for _ in range(2)]
    eventually(lambda: len(list(stage.iterdir())) == len(runs))
    with psycopg.connect(database) as stranger:
        stranger.execute("lock table underway.run in access exclusive mode")
        time.sleep(34)  # almost three leases: reapers and commits queue for the lock in turn
    for name in ("a", "b", "c", "d"):
        (stage / name).touch()
    for run in runs:
        eventually(lambda run=run: run.status() is Status.WAITING, within=60, what=f"{run.attempts()}")  # type: ignore[misc]
    with psycopg.connect(database) as connection:
        ended = outcomes(connection)
        assert ended == {"released": ended["released"], "succeeded": len(runs)}
    assert any("killed" in supervisor.log for supervisor in supervisors)


@pytest.mark.chaos
@limit(SECONDS)
def test_the_connections_of_pgbouncer_are_killed(
    database: str, start_supervisor: Start, tmp_path: Path, say: Say, count: Count
) -> None:
    rng = random.Random(SEED)
    with pgbouncer(database, tmp_path) as url, open_books(database, random.Random(SEED)) as books:

        def kill() -> None:
            """Kill some connections to the server; any supervisor's statements may be running on them."""
            with books.connect() as connection:
                connection.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where datname = current_database() and pid <> pg_backend_pid() and random() < %s",
                    [rng.choice([0.3, 1.0])],
                )

        with serving(start_supervisor, url, count):
            count(pgbouncer_cuts=disturb(books, say, kill, pauses_between(rng, 0.1, 1.5)))
        books.audit(count)


@pytest.mark.chaos
def test_refused_statements_are_repeated_less_and_less_often_and_nothing_is_lost(
    bind: Callable[[Underway], Underway], connection: Connection, database: str, start_supervisor: Start
) -> None:
    """With a missing grant or a full disk, the connection works, and other statements succeed."""
    bind(basic.app)
    role = "refused_for_a_while"
    connection.execute(f"create role {role} login")
    try:
        connection.execute(f"grant all on schema underway to {role}")
        connection.execute(f"grant all on all tables in schema underway to {role}")
        connection.execute(f"grant all on all sequences in schema underway to {role}")
        supervisor = start_supervisor("basic", "--database", make_conninfo(database, user=role))
        supervisor.until("serving")
        connection.execute(f"revoke insert on underway.attempt from {role}")
        runs = basic.numbers.enqueue_many(range(200))
        supervisor.until("permission denied for table attempt")
        time.sleep(8)
        assert supervisor.log.count("permission denied") < 20
        connection.execute(f"grant insert on underway.attempt to {role}")
        assert sum(run.result(20) for run in runs) == 19900
        assert outcomes(connection) == {"succeeded": 200}
        supervisor.end()
    finally:
        connection.execute(f"drop owned by {role}")
        connection.execute(f"drop role {role}")
