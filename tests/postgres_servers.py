"""Postgres servers for the tests. They vanish with the pytest that asked for them, however it ends."""

import gc
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from underway.postgres.embedded import Cluster

# synchronous_commit stays on: tests of durability and of commit order must see what users see. Only the disk is left
# out, whose loss no test survives to notice.
SETTINGS = {"fsync": "off", "full_page_writes": "off", "max_connections": "300"}
IMAGE = "postgres:18"


@contextmanager
def server_url() -> Iterator[str]:
    """The URL of a superuser on a server for tests: UNDERWAY_TEST_DATABASE_URL, else Docker, else the wheel."""
    with ExitStack() as stack:
        yield (
            os.environ.get("UNDERWAY_TEST_DATABASE_URL")
            or _docker_server(stack)
            or stack.enter_context(temporary_cluster()).url("postgres")
        )


@contextmanager
def debian_server() -> Iterator[str | None]:
    """The oldest Postgres Debian has put on this machine, None if there is none: what PostgreSQL 18 forgives."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if not found:
        yield None
        return
    with temporary_cluster(bin_dir=found[0].parent) as cluster:
        yield cluster.url("postgres")


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

    A watchdog does that when it is told to, and also at the end of its stdin, which comes when pytest is killed.
    (Fixtures alone left a server and 70 MB behind at every `kill -9`.)
    """
    # below /tmp: pytest's own folders are closed to the user as whom the server of root runs
    folder = Path(tempfile.mkdtemp(prefix="underway-test-", dir="/tmp"))
    watchdog = subprocess.Popen(
        [sys.executable, __file__, folder, bin_dir or ""],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C is for pytest, which may still need the server to clean up
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        yield folder
    finally:
        watchdog.communicate(b"x")  # a byte: a forked child that holds the pipe too would keep its end away


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


def _watch(folder: Path, bin_dir: str) -> None:
    sys.stdin.buffer.read(1)
    try:
        Cluster(folder, bin_dir=bin_dir or None).stop("immediate")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    _watch(Path(sys.argv[1]), sys.argv[2])
