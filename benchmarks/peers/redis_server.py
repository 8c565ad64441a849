"""A private Redis from Debian's package: a free loopback port, a temporary folder, otherwise default settings."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.peers.environments import Unavailable

_HOST = "127.0.0.1"
_START_SECONDS = 10
# The path in Debian's package; not every user has it in PATH.
_PROGRAM = "/usr/bin/redis-server"


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Yields the URL of the server."""
    program = shutil.which("redis-server") or _PROGRAM
    port = _free_port()
    try:
        process = subprocess.Popen(
            [program, "--bind", _HOST, "--port", str(port), "--dir", str(folder), "--daemonize", "no"],
            stdout=(folder / "redis.log").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise Unavailable("needs a Redis (Debian: apt install redis-server)") from None
    try:
        _await_ready(port, process)
        yield f"redis://{_HOST}:{port}/0"
    finally:
        process.kill()
        process.wait()


def version() -> str:
    """The version of the installed server; empty without one."""
    with suppress(FileNotFoundError):
        output = subprocess.run([_PROGRAM, "--version"], capture_output=True, text=True, check=False).stdout
        return next((word.removeprefix("v=") for word in output.split() if word.startswith("v=")), "")
    return ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _await_ready(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection((_HOST, port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            if connection.recv(100).startswith(b"+PONG"):
                return
        time.sleep(0.02)
    raise Unavailable("Redis did not start")
