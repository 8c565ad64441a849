"""HUP: the workers of a running supervisor are replaced by workers with the current code."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import rolling
from db import value
from harness import Supervisor, eventually, outcomes, states
from underway_command import document

RELOADED = "reloaded: all workers run the new code"
Start = Callable[..., Supervisor]


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """The file of an app, in its first version."""
    folder = tmp_path / "app"
    folder.mkdir()
    rolling.write(folder / "rolled.py", "one")
    return folder / "rolled.py"


@pytest.fixture
def start(connection: psycopg.Connection[Any], start_supervisor: Start, app: Path, stage: Path) -> Start:
    """Start a supervisor for that file."""

    def start_rolled(*options: str, **env: str) -> Supervisor:
        supervisor = start_supervisor(f"{app}:app", "--verbose", *options, env={"HOSTILE_FOLDER": str(stage), **env})
        eventually(lambda: supervisor.log.count("worker booted") == 3, what="two workers and the spare")
        eventually(lambda: value(connection, "select count(*) from underway.job") >= 2, what="the app is registered")
        return supervisor

    return start_rolled


def test_hup_rolls_to_the_new_code_under_load(connection: psycopg.Connection[Any], start: Start, app: Path) -> None:
    supervisor = start("--procs", "2")
    _enqueue(connection, "versions", *map(str, range(400)))
    eventually(lambda: states(connection).get("succeeded", 0) > 50)
    before = {worker.pid for worker in supervisor.workers()}
    rolling.write(app, "two")
    supervisor.send(signal.SIGHUP)
    supervisor.until(RELOADED)
    _enqueue(connection, "versions", "1000")
    eventually(lambda: states(connection) == {"succeeded": 401})
    # Each run ran once, with the old or the new code, and without a charge.
    assert outcomes(connection) == {"succeeded": 401}
    assert _charges(connection) == (0, 0)
    results = _results(connection)
    assert set(results) == {"one", "two"}
    assert results[-1] == "two"
    eventually(lambda: len(supervisor.workers()) == 3)
    assert not before & {worker.pid for worker in supervisor.workers()}
    _assert_enough_workers(supervisor.log, procs=2)


def _assert_enough_workers(log: str, *, procs: int) -> None:
    """Each replaced worker already had its successor, besides the active workers and the old spare."""
    booted = replaced = 0
    for line in log.splitlines():
        booted += "worker booted" in line
        if "worker replaced" in line:
            replaced += 1
            assert booted - 1 - replaced >= procs
    assert replaced == procs


def test_each_generation_of_workers_runs_only_the_jobs_it_knows(
    connection: psycopg.Connection[Any], start: Start, app: Path, stage: Path
) -> None:
    rolling.write(app, "one", 'old = app.job("old").step(version)\nrenamed = app.job("renamed").step(version)')
    supervisor = start("--procs", "2")
    _enqueue(connection, "waits", '"curtain"')
    eventually(lambda: states(connection) == {"in_progress": 1})
    rolling.write(
        app, "two",
        'new = app.job("new").step(version)\n'
        'renamed = app.job("renamed").step(version, name="since", formerly="version")',
    )  # fmt: skip
    supervisor.send(signal.SIGHUP)
    supervisor.until("worker replaced: its code is old")
    # One worker of each generation; the old one is busy. A job of the new code cannot be enqueued earlier.
    eventually(lambda: value(connection, "select count(*) from underway.job where name = 'new'") == 1)
    _enqueue(connection, "old", "1", "2", "3")
    _enqueue(connection, "new", "1", "2", "3")
    _enqueue(connection, "renamed", *map(str, range(20)))
    eventually(lambda: states(connection) == {"in_progress": 1, "pending": 3, "succeeded": 23}, what="not the old")
    assert RELOADED not in supervisor.log
    (stage / "curtain").touch()
    supervisor.until(RELOADED)
    eventually(lambda: states(connection) == {"pending": 3, "succeeded": 24})
    assert _results(connection).count("one") == 1
    assert outcomes(connection) == {"succeeded": 24}
    assert _charges(connection) == (0, 0)
    stranded = "select array_agg(distinct job) from underway.stranded_lane"
    eventually(lambda: value(connection, stranded) == ["old"], what="no worker claims to serve it")


def test_a_renamed_step_runs_on_old_workers_under_its_old_name(
    connection: psycopg.Connection[Any], start: Start, app: Path, stage: Path
) -> None:
    renamed = 'renamed = app.job("renamed").step(wait{})'
    rolling.write(app, "one", renamed.format(""))
    supervisor = start("--procs", "2")
    _enqueue(connection, "waits", '"first"', '"second"')
    eventually(lambda: states(connection) == {"in_progress": 2})
    rolling.write(app, "two", renamed.format(', name="since", formerly="wait"'))
    supervisor.send(signal.SIGHUP)
    (stage / "first").touch()
    supervisor.until("worker replaced")
    # The spare does not boot, so the last old worker stays. Both get tasks that were claimed by the new code's names.
    app.write_text("nonsense")
    supervisor.until("not reloaded: 1 of 2 workers still run the old code")
    connection.execute("update underway.job set step = 'wait' where name = 'renamed'")  # as an old client enqueues
    _enqueue(connection, "renamed", '"third"', '"third"')
    (stage / "second").touch()
    eventually(lambda: states(connection) == {"in_progress": 2, "succeeded": 2})
    (stage / "third").touch()
    eventually(lambda: states(connection) == {"succeeded": 4})
    assert sorted(_results(connection)[-2:]) == ["one", "two"]
    assert outcomes(connection) == {"succeeded": 4}


def test_a_task_on_an_old_worker_is_renewed_for_the_old_lease(
    connection: psycopg.Connection[Any], start: Start, app: Path, stage: Path
) -> None:
    """(It was renewed for the new, longer lease, so the old lease expired while its step was running.)"""
    held = 'from datetime import timedelta\nheld = app.job("held").step(wait, lease=timedelta(seconds={}))'
    rolling.write(app, "one", held.format(2))
    supervisor = start("--procs", "2")
    eventually(lambda: value(connection, "select count(*) from underway.job") == 3, what="it is registered")
    _enqueue(connection, "held", '"curtain"')
    eventually(lambda: states(connection) == {"in_progress": 1})
    rolling.write(app, "two", held.format(60))
    supervisor.send(signal.SIGHUP)
    supervisor.until("worker replaced: its code is old")
    expires = value(connection, "select lease_expires_at from underway.run")
    later = "select lease_expires_at > %s + interval '3 s' from underway.run"
    eventually(lambda: value(connection, later, [expires]), what="it is renewed again and again")
    (stage / "curtain").touch()
    supervisor.until(RELOADED)
    eventually(lambda: states(connection) == {"succeeded": 1})
    assert outcomes(connection) == {"succeeded": 1}
    assert _results(connection) == ["one"]


def test_if_the_new_code_does_not_boot_the_old_workers_stay(
    connection: psycopg.Connection[Any], database: str, start: Start, app: Path
) -> None:
    supervisor = start("--procs", "2")
    rolling.write(app, "two", "1 / 0")
    supervisor.send(signal.SIGHUP)
    supervisor.until("not reloaded: 2 of 2 workers still run the old code")
    assert "ZeroDivisionError: division by zero" in supervisor.log
    _enqueue(connection, "versions", *map(str, range(50)))
    eventually(lambda: states(connection) == {"succeeded": 50})
    assert set(_results(connection)) == {"one"}
    (label,) = eventually(lambda: [row for row in document("supervisors", database=database) if row["trouble"]])
    assert label["state"] == "unhealthy"
    assert label["trouble"] == "workers do not boot: ZeroDivisionError: division by zero"
    # Fixed, and reloaded.
    rolling.write(app, "three")
    supervisor.send(signal.SIGHUP)
    supervisor.until(RELOADED)
    _enqueue(connection, "versions", "50")
    eventually(lambda: states(connection) == {"succeeded": 51})
    assert _results(connection)[-1] == "three"
    assert _charges(connection) == (0, 0)
    eventually(lambda: [row["trouble"] for row in document("supervisors", database=database)] == [None])
    supervisor.send(signal.SIGTERM)
    assert supervisor.wait() == 0


def test_a_second_hup_starts_over_and_one_during_a_drain_is_ignored(
    connection: psycopg.Connection[Any], start: Start, app: Path, stage: Path
) -> None:
    supervisor = start("--procs", "2")
    _enqueue(connection, "waits", '"first"')
    eventually(lambda: states(connection) == {"in_progress": 1})
    rolling.write(app, "two")
    supervisor.send(signal.SIGHUP)
    supervisor.until("worker replaced")
    rolling.write(app, "three")
    supervisor.send(signal.SIGHUP)
    eventually(lambda: supervisor.log.count("worker replaced") == 2, what="the one with the second version too")
    (stage / "first").touch()
    supervisor.until(RELOADED)
    assert supervisor.log.count("worker replaced") == 3
    _enqueue(connection, "versions", *map(str, range(20)))
    eventually(lambda: states(connection) == {"succeeded": 21})
    assert _results(connection) == ["one", *["three"] * 20]

    _enqueue(connection, "waits", '"second"')
    eventually(lambda: states(connection).get("in_progress") == 1)
    rolling.write(app, "four")
    supervisor.send(signal.SIGTERM)
    supervisor.until("SIGTERM: finishing what runs")
    supervisor.send(signal.SIGHUP)
    supervisor.until("SIGHUP: nothing is reloaded")
    (stage / "second").touch()
    assert supervisor.wait() == 0
    assert _results(connection)[-1] == "three"


def test_a_reload_follows_a_symbolic_link_to_a_new_release(
    connection: psycopg.Connection[Any], start_supervisor: Start, tmp_path: Path, stage: Path
) -> None:
    for release in ("one", "two"):
        (tmp_path / release).mkdir()
        rolling.write(tmp_path / release / "rolled.py", release)
    current = tmp_path / "current"
    current.symlink_to("one")
    before = Path.cwd()
    os.chdir(current)
    try:
        supervisor = start_supervisor("rolled:app", env={"PWD": str(current), "HOSTILE_FOLDER": str(stage)})
    finally:
        os.chdir(before)
    eventually(lambda: value(connection, "select count(*) from underway.job") == 2)
    _enqueue(connection, "versions", "1")
    eventually(lambda: states(connection) == {"succeeded": 1})
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").replace(current)
    supervisor.send(signal.SIGHUP)
    supervisor.until(RELOADED)
    _enqueue(connection, "versions", "2")
    eventually(lambda: states(connection) == {"succeeded": 2})
    assert _results(connection) == ["one", "two"]


def test_closing_the_terminal_stops_the_supervisor(database: str, app: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    log = tmp_path / "log"

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "underway.cli.supervisor", f"{app}:app"],
            stdin=theirs,
            stdout=file,
            stderr=file,
            preexec_fn=take_terminal,
            env={**os.environ, "UNDERWAY_DATABASE_URL": database},
        )
    try:
        os.close(theirs)
        eventually(lambda: "serving" in log.read_text())
        process.send_signal(signal.SIGHUP)
        eventually(lambda: RELOADED in log.read_text(), what="the terminal is still there")
        os.close(ours)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def _enqueue(connection: psycopg.Connection[Any], job: str, *inputs: str) -> None:
    for each in inputs:
        connection.execute("select underway.enqueue(%s, %s)", [job, each])


def _results(connection: psycopg.Connection[Any]) -> list[str]:
    """In the order in which the runs ended."""
    rows = connection.execute("select result from underway.finished_run order by finished_at, id").fetchall()
    return [result for (result,) in rows]


def _charges(connection: psycopg.Connection[Any]) -> tuple[int, int]:
    row = connection.execute("select sum(attempts)::int, sum(crashes)::int from underway.runs").fetchone()
    assert row is not None
    return row[0], row[1]
