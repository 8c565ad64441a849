"""The primary fails under load and a standby is promoted: a synchronous one, back and forth, and one that lagged.

CHAOS_SEED determines what happens.
"""

import random
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from apps import ledger
from chaos_report import Count, Say
from chaos_settings import SEED
from harness import Supervisor, eventually, outcomes
from ledger_audit import open_books, serving
from psycopg.conninfo import make_conninfo
from standbys import await_caught_up, cut_off, follow, promote, standby_of, wait_for_standby

from underway import RunNotFound
from underway.postgres.embedded import Cluster
from underway.testing.servers import temporary_cluster

SETTLE_SECONDS = 120.0

Start = Callable[..., Supervisor]

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(2 * SETTLE_SECONDS + 60)]


def url_of(*clusters: Cluster) -> str:
    """A URL of all of them, in this order; clients connect to the primary only."""
    folders, ports = ",".join(str(cluster.folder) for cluster in clusters), ",".join("5432" for _ in clusters)
    return make_conninfo(dbname="ledger", user="postgres", target_session_attrs="read-write", host=folders, port=ports)


def hang_up(cluster: Cluster) -> None:
    """Terminate all connections to the database, so that clients look for the primary again."""
    with psycopg.connect(cluster.url("postgres"), autocommit=True) as connection:
        connection.execute("select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = 'ledger'")


def succeeded(url: str) -> dict[tuple[str, str], int]:
    """The token with which each step of each run has succeeded."""
    with psycopg.connect(url) as connection:
        rows: list[tuple[Any, ...]] = connection.execute(
            "select run_id::text, step, token from underway.attempt where outcome = 'succeeded'"
        ).fetchall()
    return {(run, step): token for run, step, token in rows}


def test_a_synchronous_standby_is_promoted_and_the_old_primary_comes_back(
    start_supervisor: Start, say: Say, count: Count
) -> None:
    rng = random.Random(SEED)
    with temporary_cluster() as one, standby_of(one) as other:
        one.create_database("ledger")
        await_caught_up(one)
        wait_for_standby(one)
        url = url_of(one, other)
        with open_books(url, rng, migrate=True) as books, serving(start_supervisor, url, count):
            for primary, standby in ((one, other), (other, one)):
                books.enqueue(60)
                eventually(lambda: "succeeded" in books.progress())
                books.enqueue(60)  # acknowledged by both servers, otherwise the audit fails
                primary.stop("immediate")
                time.sleep(rng.uniform(0, 3))
                promote(standby)
                began = time.monotonic()
                books.enqueue(60)
                # It comes back as the first host in the URL, and must not be mistaken for the primary.
                follow(primary, standby)
                hang_up(standby)
                books.enqueue(60)
                wait_for_standby(standby)
                say(f"failover: CHAOS_SEED={SEED}, a standby again after {time.monotonic() - began:.1f} s")
                say(f"failover: {books.progress()}")
            books.settle(SETTLE_SECONDS, say)
        books.audit(count)


def test_an_asynchronous_standby_that_lagged_is_promoted(start_supervisor: Start, say: Say, count: Count) -> None:
    """What only the old primary had acknowledged is lost: such runs are repeated once, or gone."""
    rng = random.Random(SEED)
    with temporary_cluster() as primary, standby_of(primary) as standby:
        primary.create_database("ledger")
        url = url_of(primary, standby)
        with open_books(url, rng, migrate=True) as books, serving(start_supervisor, url, count) as supervisors:
            books.enqueue(80, parcels=2000)
            eventually(lambda: len(succeeded(url)) > 200)
            known = succeeded(url)
            await_caught_up(primary)
            cut_off(standby)
            forgotten = ledger.parcels.enqueue(7)
            eventually(lambda: len(succeeded(url)) > len(known) + 100 + rng.randint(200, 500))
            acknowledged = succeeded(url)
            primary.stop("immediate")
            promote(standby)
            books.settle(SETTLE_SECONDS, say)
            ledger.app.close()  # its connections lead to the old primary
            with pytest.raises(RunNotFound):
                ledger.app.get_run(forgotten.id)
        books.audit(count)
        done = succeeded(url)
        with books.connect() as connection:
            ended = outcomes(connection)
        again = [step for step, token in acknowledged.items() if step in done and done[step] != token]
        say(
            f"behind: CHAOS_SEED={SEED}, {len(acknowledged) - len(known)} steps had succeeded that the standby did not"
            f" know of; {len(again)} of them under other tokens since; attempts {ended}"
        )
        assert known.items() <= done.items(), "nothing that the standby knew was repeated"
        assert again
        assert [supervisor.log.count("Traceback") for supervisor in supervisors] == [0, 0]
