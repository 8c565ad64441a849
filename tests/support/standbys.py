"""Standby servers."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from harness import eventually

from underway.postgres.embedded import Cluster
from underway.testing.servers import SETTINGS, cluster_folder


@contextmanager
def standby_of(primary: Cluster) -> Iterator[Cluster]:
    """A new standby, asynchronous until `wait_for_standby`."""
    with cluster_folder(primary.bin_dir) as folder:
        standby = Cluster(folder, bin_dir=primary.bin_dir, settings=SETTINGS)
        follow(standby, primary)
        yield standby


def follow(standby: Cluster, primary: Cluster) -> None:
    """Restart a stopped cluster as a standby of the primary, discarding its data."""
    source = f"host={primary.folder} port=5432 user=postgres"
    with standby._locked():
        shutil.rmtree(standby.data, ignore_errors=True)
        standby._run("pg_basebackup", "-D", standby.data, "-d", source, "-R", "-c", "fast", "--no-sync")
    standby.start()


def wait_for_standby(primary: Cluster) -> None:
    """Make the standby synchronous: the primary acknowledges only what the standby has."""
    with psycopg.connect(primary.url("postgres"), autocommit=True) as connection:
        # After the backup; otherwise the standby, once promoted, would wait for a standby itself.
        connection.execute("alter system set synchronous_standby_names = '*'")
        connection.execute("select pg_reload_conf()")
        synchronous = "select from pg_stat_replication where sync_state = 'sync'"
        eventually(lambda: connection.execute(synchronous).fetchall(), what="a synchronous standby")


def await_caught_up(primary: Cluster) -> None:
    with psycopg.connect(primary.url("postgres"), autocommit=True) as connection:
        wanted = connection.execute("select pg_current_wal_lsn()").fetchone()
        behind = "select from pg_stat_replication where replay_lsn >= %s"
        eventually(lambda: connection.execute(behind, wanted).fetchall(), what="a standby that has it all")


def cut_off(standby: Cluster) -> None:
    """Disconnect the standby from its primary, which continues."""
    with psycopg.connect(standby.url("postgres"), autocommit=True) as connection:
        connection.execute("alter system set primary_conninfo = 'host=/nowhere'")
        connection.execute("select pg_reload_conf()")
        eventually(
            lambda: not connection.execute("select from pg_stat_wal_receiver where status = 'streaming'").fetchall()
        )


def promote(standby: Cluster) -> None:
    with psycopg.connect(standby.url("postgres"), autocommit=True) as connection:
        assert connection.execute("select pg_promote()").fetchone() == (True,)
