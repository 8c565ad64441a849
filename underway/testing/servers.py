"""Postgres servers for tests. They are removed when the process that started them is gone, however it ends."""

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

# synchronous_commit stays on, so that tests of durability and of commit order see what users see. Nothing is flushed to
# disk: no test survives a crash of the machine.
SETTINGS = {"fsync": "off", "full_page_writes": "off", "max_connections": "300"}
IMAGE = "postgres:18"
_MEMORY = "/dev/shm"  # noqa: S108 - mkdtemp makes a folder of our own in it; on Linux only
_ROOM = 4 * 2**30


class TemporaryPostgres:
    """A server for tests, which creates a database for each test. `url` is that of a superuser."""

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
    """The server of UNDERWAY_TEST_DATABASE_URL, else one in Docker, else one of the embedded wheel.

    The URL must be that of a superuser, because databases are created and dropped. Raises EmbeddedPostgresError if none
    of the three is available.
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
    """A folder for a cluster. At the end the cluster is stopped and the folder removed.

    A watchdog process does this, at the end of the block or at the end of its stdin, which comes when we are killed.
    (Fixtures alone left a server and 70 MB behind at every `kill -9`.)
    """
    folder = Path(tempfile.mkdtemp(prefix="underway-test-", dir=_parent_folder()))
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
        watchdog.communicate(b"x")  # a byte, because end of file does not come while a forked child holds the pipe too


def _parent_folder() -> str:
    """Shared memory, if it has room for the servers of some test processes and is not mounted noexec, as in Docker.

    A new database is 300 small files, which take 65 ms of CPU time on ext4 and 15 ms in memory. Otherwise /tmp: if the
    tests run as root, the server runs as another user, who cannot enter pytest's folders.
    """
    if os.access(_MEMORY, os.W_OK):
        memory = os.statvfs(_MEMORY)
        if memory.f_bavail * memory.f_frsize >= _ROOM and not memory.f_flag & os.ST_NOEXEC:
            return _MEMORY
    return "/tmp"  # noqa: S108 - likewise


def _docker_server(stack: ExitStack) -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of testcontainers: moved modules, and a socket left open if Docker is absent
        answers = _docker_answers()
        gc.collect()  # closes that socket now; later its warning would fail an unrelated test
        if not answers:
            return None
        from testcontainers.postgres import PostgresContainer

        container: Any = PostgresContainer(IMAGE, driver=None)
        settings = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
        try:
            stack.enter_context(container.with_command(["postgres", *settings]))
        except Exception as e:  # offline, or over Docker Hub's pull limit
            print(f"Docker cannot run {IMAGE}, so the embedded wheel is used: {e}", file=sys.stderr)
            return None
        return str(container.get_connection_url())


def _docker_answers() -> bool:
    try:
        from testcontainers.core.docker_client import DockerClient

        return bool(DockerClient(timeout=3).client.ping())
    except Exception:
        return False
