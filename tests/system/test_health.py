"""`underway health`: exit codes and reasons for healthy, unhealthy, silent and killed supervisors."""

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from db import Connection, value
from harness import Supervisor, eventually
from places import APPS
from underway_command import underway

Start = Callable[..., Supervisor]
HOST = socket.gethostname()
UNUSED_PID = 2**22 + 1  # greater than any PID that the kernel assigns


def label(connection: Connection, *, pid: int, minutes: int = 0, host: str = HOST, trouble: str | None = None) -> str:
    """Insert the row of a supervisor that was last seen this many minutes ago."""
    identity = str(uuid4())
    connection.execute(
        "insert into underway.supervisor (id, host, pid, app, trouble, started_at, seen_at) "
        "values (%s, %s, %s, 'app', %s, now() - %s::interval - interval '1 hour', now() - %s::interval)",
        [identity, host, pid, trouble, *[f"{minutes} minutes"] * 2],
    )
    return identity


def test_a_running_supervisor_is_healthy_and_a_killed_one_is_ignored(
    connection: Connection, database: str, start_supervisor: Start
) -> None:
    def ask() -> tuple[int, str]:
        done = underway("health", database=database)
        assert done.stderr == ""
        return done.returncode, done.stdout

    assert ask() == (1, f"unhealthy: no live supervisor on host {HOST}\n")
    label(connection, pid=os.getpid(), minutes=4, host="elsewhere")
    supervisor = start_supervisor("basic", "--procs", "1")
    supervisor.until("serving")
    eventually(lambda: value(connection, "select count(*) from underway.supervisor") == 2)
    assert ask() == (0, "healthy: 1 supervisor\n")
    supervisor.send(signal.SIGKILL)
    supervisor.wait()
    connection.execute("update underway.supervisor set seen_at = now() - interval '11 seconds'")
    assert ask() == (1, f"unhealthy: no live supervisor on host {HOST}\n")


def test_silent_and_unhealthy_supervisors_are_reported(connection: Connection, database: str) -> None:
    healthy, silent = label(connection, pid=os.getpid()), label(connection, pid=os.getppid(), minutes=5)
    done = underway("health", database=database)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == f"unhealthy: supervisor {silent[:8]} ({HOST}:{os.getppid()}) was last seen 5m ago\n"
    assert underway("health", healthy, database=database).returncode == 0
    # In a restarted container, a new supervisor has the PID of the old one.
    label(connection, pid=os.getppid())
    assert underway("health", database=database).stdout == "healthy: 2 supervisors\n"

    unhealthy = label(connection, pid=UNUSED_PID, trouble="workers do not boot: \x1b[31mNameError")
    done = underway("health", "--json", database=database)
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["healthy"], len(answer["supervisors"])) == (1, False, 3)
    assert answer["reason"].startswith(f"supervisor {unhealthy[:8]} ({HOST}:{UNUSED_PID}): workers do not boot: ")
    assert "\x1b" not in underway("health", database=database).stdout


def test_code_that_does_not_boot_is_reported(database: str, start_supervisor: Start, tmp_path: Path) -> None:
    app = tmp_path / "breaking.py"
    app.write_text((APPS / "basic.py").read_text())
    supervisor = start_supervisor(f"{app}:app", "--procs", "1")
    supervisor.until("serving")
    app.write_text("raise RuntimeError('not today')")
    supervisor.send(signal.SIGHUP)
    eventually(lambda: underway("health", database=database).returncode == 1)
    assert "workers do not boot: RuntimeError: not today" in underway("health", database=database).stdout


def test_without_a_database_it_is_unhealthy() -> None:
    done = underway("health", database="host=127.0.0.1 port=1")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("unhealthy: cannot connect to the database: ")
    assert done.stdout.count("\n") == 1, "libpq takes two lines"
    done = underway("health", "--json", database="host=127.0.0.1 port=1")
    assert (done.returncode, json.loads(done.stdout)["healthy"]) == (1, False)
