"""A Postgres with default durability, and supervisors on it, as a user would run them."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, LiteralString
from uuid import uuid4

import psutil
import psycopg

from benchmarks.app import app
from underway.postgres.embedded import Cluster

APP = "benchmarks.app:app"
_ROOT = Path(__file__).parent.parent
_POLL_SECONDS = 0.25
_DRAIN_SECONDS = 600.0


class Testbed:
    """One server, one database, and what is done with them between measurements."""

    def __init__(self, cluster: Cluster, url: str, folder: Path) -> None:
        self.cluster = cluster
        self.url = url
        self.folder = folder
        self._connection = psycopg.connect(url, autocommit=True)

    def value(self, query: LiteralString, *parameters: object) -> Any:
        row = self._connection.execute(query, parameters).fetchone()
        return None if row is None else row[0]

    def await_true(self, query: LiteralString, *parameters: object, otherwise: str) -> None:
        """Wait until the query returns true; after a minute, raise TimeoutError with this text."""
        deadline = time.monotonic() + 60
        while not self.value(query, *parameters):
            if time.monotonic() > deadline:
                raise TimeoutError(otherwise)
            time.sleep(0.1)

    def rows(self, query: LiteralString) -> list[tuple[Any, ...]]:
        return self._connection.execute(query).fetchall()

    def export_runs(self) -> bytes:
        """The table of runs in COPY format."""
        with self._connection.cursor().copy("copy underway.run to stdout") as copy:
            return b"".join(copy)

    def import_runs(self, rows: bytes) -> None:
        with self._connection.cursor().copy("copy underway.run from stdin") as copy:
            copy.write(rows)

    def close(self) -> None:
        self._connection.close()

    def clear(self) -> None:
        """Start each round alike: empty tables, and nothing soon for autovacuum or a checkpoint to do."""
        self._connection.execute("truncate underway.finished_run, underway.attempt")
        self._connection.execute("vacuum analyze underway.run")
        self._connection.execute("checkpoint")

    def empty(self) -> None:
        """Delete all runs, also those that no supervisor has run, and the rows of killed supervisors."""
        self._connection.execute("truncate underway.run, underway.finished_run, underway.attempt, underway.supervisor")

    def drain(self, enqueue: Callable[[], object], runs: int, *, from_commit: bool = False) -> float:
        """Seconds from the start of the first attempt to the end of the last run, by the database's clock.

        The backlog becomes visible when its one transaction commits. `from_commit` counts from there, because the
        first claim of large inputs takes time too.
        """
        self.clear()
        enqueue()
        committed_at = self.value("select clock_timestamp()")
        deadline = time.monotonic() + _DRAIN_SECONDS
        # Rarely: polling takes CPU from what is measured.
        while self.value("select exists (select from underway.run)"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not all runs finished within {_DRAIN_SECONDS} s")
            time.sleep(_POLL_SECONDS)
        succeeded = self.value("select count(*) from underway.finished_run where state = 'succeeded'")
        if succeeded != runs:
            raise AssertionError(f"only {succeeded} of {runs} runs succeeded: the measurement is invalid")
        return float(
            self.value(
                "select extract(epoch from (select max(finished_at) from underway.finished_run)"
                " - (select case when %s then least(min(started_at), %s) else min(started_at) end"
                " from underway.attempt))",
                from_commit,
                committed_at,
            )
        )

    def postgres_processes(self) -> list[psutil.Process]:
        """The postmaster and its children."""
        postmaster = psutil.Process(int((self.cluster.data / "postmaster.pid").read_text().split()[0]))
        return [postmaster, *postmaster.children()]

    @contextmanager
    def supervisor(self, procs: int) -> "Iterator[Supervisor]":
        """A supervisor whose workers have all booted, including the spare."""
        running = Supervisor(self, procs)
        try:
            running.await_boots(procs + 1)
            yield running
        finally:
            running.stop()


class Supervisor:
    """An `underway-supervisor` process. It is verbose, so that its log says when a worker has booted."""

    def __init__(self, testbed: Testbed, procs: int) -> None:
        self._testbed = testbed
        self.log = testbed.folder / f"supervisor-{uuid4()}.log"
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "underway.cli.supervisor", APP, "--procs", str(procs), "--verbose"],
                cwd=_ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "UNDERWAY_DATABASE_URL": testbed.url},
            )
        self.process = psutil.Process(self._process.pid)

    def await_boots(self, count: int) -> None:
        """Wait until this many workers have booted since the start."""
        deadline = time.monotonic() + 60
        while self.log.read_bytes().count(b"worker booted") < count:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the supervisor did not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.05)

    def workers(self) -> list[psutil.Process]:
        return [child for child in self.process.children() if _is_worker(child)]

    def connections(self) -> int:
        """The number of connections of the supervisor and its workers. Our own app's pool must be closed."""
        query: LiteralString = (
            "select count(*) from pg_stat_activity where application_name = 'underway' and datname = current_database()"
        )
        return int(self._testbed.value(query))

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(3)  # SIGQUIT: stop immediately
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _is_worker(process: psutil.Process) -> bool:
    """Recognize a worker by its command line, which it overwrites when it has booted."""
    return any(word.startswith(("underway.worker", "underway worker ")) for word in process.cmdline())


@contextmanager
def server() -> Iterator[tuple[Cluster, Path]]:
    """A cluster in a temporary folder with Postgres' default settings (fsync and synchronous commits on), and a folder
    for logs."""
    # Below /tmp: if we are root, the server runs as another user, who must be able to enter every parent folder.
    folder = Path(tempfile.mkdtemp(prefix="underway-bench-", dir="/tmp"))
    logs = Path(tempfile.mkdtemp(prefix="underway-bench-logs-"))
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster, logs
    finally:
        cluster.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(logs, ignore_errors=True)


@contextmanager
def start() -> Iterator[Testbed]:
    with server() as (cluster, logs):
        cluster.create_database("bench")
        os.environ["UNDERWAY_DATABASE_URL"] = cluster.url("bench")
        app.migrate()
        testbed = Testbed(cluster, cluster.url("bench"), logs)
        try:
            yield testbed
        finally:
            testbed.close()
            app.close()
