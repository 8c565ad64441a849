"""`underway replay`: run a stored attempt by hand, without any effect."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apps import basic, replaying
from apps.replaying import Order
from db import Connection, dump, value
from harness import Supervisor, eventually
from places import APPS
from underway_command import underway_process

from underway import Run, Status, Underway

Bind = Callable[[Underway], Underway]
Start = Callable[..., Supervisor]
APP = str(APPS / "replaying.py:app")


def replay(run: Run[Any], database: str, *options: str) -> subprocess.CompletedProcess[str]:
    return underway_process("replay", APP, str(run.id), *options, database=database)


def nothing_is_written(connection: Connection) -> bool:
    return value(connection, "select to_regclass('booked') is null") is True


def test_replaying_a_pending_run_does_not_change_it(bind: Bind, connection: Connection, database: str) -> None:
    bind(replaying.app)
    run = replaying.bookings.enqueue(Order(7))
    before = dump(connection)
    done = replay(run, database)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"bookings book, run {run.id}, attempt 1, input:"
    assert '    "number": 7,' in lines
    assert "booking order 7, attempt 1" in lines
    assert "; nothing was committed" in done.stdout
    (following,) = [number for number, line in enumerate(lines) if line == "next step confirm:"]
    assert lines[following:] == [
        "next step confirm:", '  "order 7"', "enqueued greetings, input:", '  "customer of 7"',
    ]  # fmt: skip
    assert dump(connection) == before
    assert nothing_is_written(connection)


def test_a_failed_run_fails_again_at_the_same_step(
    bind: Bind, connection: Connection, database: str, start_supervisor: Start
) -> None:
    bind(replaying.app)
    run, killing = replaying.bookings.enqueue(Order(8, "fails")), replaying.bookings.enqueue(Order(9, "kills"))
    well = replaying.bookings.enqueue(Order(1))
    supervisor = start_supervisor("replaying", "--procs", "1")
    assert [one.wait(20) for one in (run, killing, well)] == [Status.FAILED, Status.FAILED, Status.SUCCEEDED]
    supervisor.end()
    before = dump(connection)

    done = replay(run, database)
    assert (done.returncode, done.stderr) == (1, "")
    assert f"bookings book, run {run.id}, attempt 1" in done.stdout
    assert "failed after " in done.stdout
    assert done.stdout.endswith("Fail: order 8 cannot be booked\n")

    # A quarantined run shows where it kills its process.
    done = replay(killing, database)
    assert done.returncode == -signal.SIGSEGV
    assert "booking order 9" in done.stdout
    assert "Fatal Python error: Segmentation fault" in done.stderr
    assert "replaying.py" in done.stderr

    done = replay(well, database)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == f"Error: cannot replay run {well.id}: its state is succeeded, and inputs of such runs are not kept\n"
    )
    assert dump(connection) == before
    assert value(connection, "select array_agg(number) from booked") == [1]


def test_a_violation_that_is_found_at_commit_fails(bind: Bind, connection: Connection, database: str) -> None:
    bind(replaying.app)
    done = replay(replaying.bookings.enqueue(Order(7, "twice")), database)
    assert done.returncode == 1
    assert "duplicate key value violates unique constraint" in done.stdout
    assert nothing_is_written(connection)


def test_while_its_supervisor_runs_it(
    bind: Bind, connection: Connection, database: str, start_supervisor: Start, stage: Path
) -> None:
    """The replay and the real attempt do not affect each other; the kill of the real one spares the replay."""
    bind(replaying.app)
    run = replaying.bookings.enqueue(Order(7, "waits"))
    start_supervisor("replaying", "--procs", "1", env={"REPLAY_FOLDER": str(stage)})
    eventually(lambda: list(stage.iterdir()), what="the step is at work")
    # Both create the same table, so the second waits until the first ends.
    command = [sys.executable, "-m", "underway.cli.main", "replay", APP, str(run.id), "--database", database]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as second:
        waiting = (
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and application_name = 'underway 0'"
        )
        eventually(lambda: value(connection, waiting) == 1)
        run.cancel()
        assert run.wait(20) == Status.CANCELLED
        output, _ = second.communicate(timeout=20)
    assert second.returncode == 0
    assert "next step confirm:" in output
    assert nothing_is_written(connection)


def test_the_debugger_opens_where_the_step_raised(bind: Bind, database: str) -> None:
    bind(replaying.app)
    run = replaying.bookings.enqueue(Order(8, "fails"))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "underway.cli.main", "replay", APP, str(run.id), "--pdb", "--database", database]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        output = b""
        while b"(Pdb)" not in output:
            output += os.read(ours, 4096)
        os.write(ours, b"p 'broken is', broken\n")
        while b"('broken is', 'order 8 cannot be booked')" not in output:
            output += os.read(ours, 4096)
        os.write(ours, b"quit\n")
        assert process.wait(20) == 1
    os.close(ours)


def test_refusals(bind: Bind, database: str) -> None:
    for app in (basic.app, replaying.app):
        bind(app)
    foreign = basic.numbers.enqueue(1)
    done = replay(foreign, database)
    assert (done.returncode, done.stderr) == (
        1, "Error: this app has no job 'numbers' with the step 'number' of the attempt\n"
    )  # fmt: skip
    nowhere = underway_process("replay", APP, "00", database=database)
    assert (nowhere.returncode, nowhere.stderr.count("\n")) == (1, 1)
    assert "no run ID starts with 00" in nowhere.stderr
    assert "file not found" in underway_process("replay", "nowhere.py:app", "00", database=database).stderr
    assert "Error: " in underway_process("replay", APP, "00").stderr  # no database is named
