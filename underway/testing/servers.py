"""Postgres servers for tests. They vanish with the process that asked for them, however it ends."""

import gc
import itertools
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from underway.postgres import temporary_database
from underway.postgres.embedded import Cluster

# synchronous_commit stays on: tests of durability and of commit order must see what users see. Only the disk is left
# out, whose loss no test survives to notice.
SETTINGS = {"fsync": "off", "full_page_writes": "off", "max_connections": "300"}
IMAGE = "postgres:18"
_MEMORY = "/dev/shm"  # noqa: S108 - mkdtemp makes a folder of our own in it; on Linux only
_ROOM = 4 * 2**30


class TemporaryPostgres:
    """A server for tests, and a database of its own for each test that asks. `url` is that of a superuser."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        self.url = url
        self._stack = stack
        self._prefix = f"underway_test_{os.getpid()}"  # several processes may share a server
        self._numbers = itertools.count(1)
        self._template: str | None = None

    @contextmanager
    def database(self, *, migrated: bool = True) -> Iterator[str]:
        """The URL of a fresh database, with the schema or empty."""
        template = self._migrated_template() if migrated else None
        with temporary_database.database(self.url, f"{self._prefix}_{next(self._numbers)}", template=template) as url:
            yield url

    def _migrated_template(self) -> str:
        if self._template is None:
            template = f"{self._prefix}_template"
            self._stack.enter_context(temporary_database.migrated_database(self.url, template))
            self._template = template
        return self._template


@contextmanager
def temporary_postgres() -> Iterator[TemporaryPostgres]:
    """A server for tests: the one that UNDERWAY_TEST_DATABASE_URL names, else Docker's, else the embedded wheel's.

    That URL must be a superuser's; databases are created beside it and dropped. Raises EmbeddedPostgresError where
    there is none of the three.
    """
    with ExitStack() as stack:
        url = (
            os.environ.get("UNDERWAY_TEST_DATABASE_URL")
            or _docker_server(stack)
            or stack.enter_context(temporary_cluster()).url("postgres")
        )
        yield TemporaryPostgres(url, stack)


@contextmanager
def temporary_cluster(bin_dir: Path | None = None) -> Iterator[Cluster]:
    """A running cluster in a folder of its own."""
    with cluster_folder(bin_dir) as folder:
        cluster = Cluster(folder, bin_dir=bin_dir, settings=SETTINGS)
        cluster.start()
        yield cluster


@contextmanager
def cluster_folder(bin_dir: Path | None = None) -> Iterator[Path]:
    """A folder for a cluster, which is stopped and removed with it.

    A watchdog does that when it is told to, and also at the end of its stdin, which comes when we are killed.
    (Fixtures alone left a server and 70 MB behind at every `kill -9`.)
    """
    folder = Path(tempfile.mkdtemp(prefix="underway-test-", dir=_place()))
    watchdog = subprocess.Popen(
        [sys.executable, "-P", "-m", "underway.testing.watchdog", folder, bin_dir or ""],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C is for the tests, which may still need the server to clean up
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        yield folder
    finally:
        watchdog.communicate(b"x")  # a byte: a forked child that holds the pipe too would keep its end away


def _place() -> str:
    """In memory if it has room for the servers of some test processes and lets programs run, which Docker's does not.

    A new database is 300 small files: 65 ms of CPU time on ext4, 15 in memory.
    Else /tmp: pytest's own folders are closed to the user as whom the server of root runs.
    """
    if os.access(_MEMORY, os.W_OK):
        memory = os.statvfs(_MEMORY)
        if memory.f_bavail * memory.f_frsize >= _ROOM and not memory.f_flag & os.ST_NOEXEC:
            return _MEMORY
    return "/tmp"  # noqa: S108 - likewise


def _docker_server(stack: ExitStack) -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs: moved modules, and a socket left open where no Docker answers
        answers = _docker_answers()
        gc.collect()  # that socket, now: later its warning would fail some innocent test
        if not answers:
            return None
        from testcontainers.postgres import PostgresContainer

        container: Any = PostgresContainer(IMAGE, driver=None)
        settings = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
        try:
            stack.enter_context(container.with_command(["postgres", *settings]))
        except Exception as e:  # offline, or over Docker Hub's limit of pulls: no reason not to test
            print(f"Docker answers but cannot run {IMAGE}, so the wheel is used: {e}", file=sys.stderr)
            return None
        return str(container.get_connection_url())


def _docker_answers() -> bool:
    try:
        from testcontainers.core.docker_client import DockerClient

        return bool(DockerClient(timeout=3).client.ping())
    except Exception:
        return False
