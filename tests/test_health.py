"""`underway health`: exit codes and reasons, with supervisors that are well, ill, silent and killed."""

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from db import Connection, value
from harness import APPS, Supervisor, eventually
from underway_command import underway

Start = Callable[..., Supervisor]
HOST = socket.gethostname()
NOBODY = 2**22 + 1  # no process has it: one more than the kernel gives


def label(connection: Connection, *, pid: int, minutes: int = 0, host: str = HOST, trouble: str | None = None) -> str:
    """What a supervisor has left, which was last heard of so many minutes ago."""
    identity = str(uuid4())
    connection.execute(
        "insert into underway.supervisor (id, host, pid, app, trouble, started_at, seen_at) "
        "values (%s, %s, %s, 'app', %s, now() - %s::interval - interval '1 hour', now() - %s::interval)",
        [identity, host, pid, trouble, *[f"{minutes} minutes"] * 2],
    )
    return identity


def test_a_supervisor_at_work_is_well_and_one_that_was_killed_is_not_there(
    connection: Connection, database: str, start_supervisor: Start
) -> None:
    def ask() -> tuple[int, str]:
        done = underway("health", database=database)
        assert done.stderr == ""
        return done.returncode, done.stdout

    assert ask() == (1, f"unhealthy: no supervisor of host {HOST} is alive\n")
    label(connection, pid=os.getpid(), minutes=4, host="elsewhere")
    supervisor = start_supervisor("basic", "--procs", "1")
    supervisor.until("serving")
    eventually(lambda: value(connection, "select count(*) from underway.supervisor") == 2)
    assert ask() == (0, "healthy: 1 supervisor\n")
    supervisor.send(signal.SIGKILL)
    supervisor.wait()
    connection.execute("update underway.supervisor set seen_at = now() - interval '11 seconds'")
    assert ask() == (1, f"unhealthy: no supervisor of host {HOST} is alive\n")


def test_one_that_is_silent_or_in_trouble_is_named(connection: Connection, database: str) -> None:
    well, silent = label(connection, pid=os.getpid()), label(connection, pid=os.getppid(), minutes=5)
    done = underway("health", database=database)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == f"unhealthy: supervisor {silent[:8]} ({HOST}:{os.getppid()}) was last heard of 5m ago\n"
    assert underway("health", well, database=database).returncode == 0
    # In a container that was started again: the pid of the old one.
    label(connection, pid=os.getppid())
    assert underway("health", database=database).stdout == "healthy: 2 supervisors\n"

    ill = label(connection, pid=NOBODY, trouble="workers do not boot: \x1b[31mNameError")
    done = underway("health", "--json", database=database)
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["healthy"], len(answer["supervisors"])) == (1, False, 3)
    assert answer["reason"].startswith(f"supervisor {ill[:8]} ({HOST}:{NOBODY}): workers do not boot: ")
    assert "\x1b" not in underway("health", database=database).stdout


def test_code_that_does_not_boot_is_told(database: str, start_supervisor: Start, tmp_path: Path) -> None:
    app = tmp_path / "breaking.py"
    app.write_text((APPS / "basic.py").read_text())
    supervisor = start_supervisor(f"{app}:app", "--procs", "1")
    supervisor.until("serving")
    app.write_text("raise RuntimeError('not today')")
    supervisor.send(signal.SIGHUP)
    eventually(lambda: underway("health", database=database).returncode == 1)
    assert "workers do not boot: RuntimeError: not today" in underway("health", database=database).stdout


def test_no_database_no_health() -> None:
    done = underway("health", database="host=127.0.0.1 port=1")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("unhealthy: connection failed: ")
    assert done.stdout.count("\n") == 1, "libpq takes two lines"
    done = underway("health", "--json", database="host=127.0.0.1 port=1")
    assert (done.returncode, json.loads(done.stdout)["healthy"]) == (1, False)
