"""A pgbouncer in transaction mode in front of a test server, if it is installed on this machine."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest
from harness import eventually
from psycopg.conninfo import conninfo_to_dict, make_conninfo


@contextmanager
def pgbouncer(database: str, folder: Path) -> Iterator[str]:
    """The URL of `database` through pgbouncer."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("no pgbouncer on this machine")
    given = conninfo_to_dict(database)
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    target = f"host={given['host']} port={given.get('port', 5432)} user={given['user']}"
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n* = {target}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        "auth_type = any\npool_mode = transaction\nserver_idle_timeout = 600\nmin_pool_size = 0\n"
    )
    # It refuses to run as root, and another user cannot read a folder created by pytest.
    command, environment = [program, "-q"], dict(os.environ)
    if os.geteuid() == 0:
        command += ["-u", "nobody"]
    with settings.open() as readable, (folder / "pgbouncer.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"/dev/fd/{readable.fileno()}"],
            pass_fds=[readable.fileno()],
            stdout=log,
            stderr=log,
            env=environment,
        )
    url = make_conninfo("", **{**given, "host": "127.0.0.1", "port": port})
    try:
        eventually(lambda: _answers(url), what=f"pgbouncer: {(folder / 'pgbouncer.log').read_text()}")
        yield url
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True
