"""Output, log lines and progress of steps in the supervisor's log; a flood of them blocks no other run."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from apps import hostile, talking
from harness import Supervisor, eventually, outcomes, states

from underway import Status, Underway


def test_output_and_log_lines_name_run_job_step_and_attempt(
    bind: Callable[[Underway], Underway], start_supervisor: Callable[..., Supervisor]
) -> None:
    bind(talking.app)
    runs = talking.sayings.enqueue_many(["one", "two"])
    supervisor = start_supervisor("talking", "--procs", "1", "--until-idle")
    assert supervisor.wait() == 0
    lines = supervisor.log.splitlines()
    for run, word in zip(runs, ["one", "two"], strict=True):
        about = f"run={run.id} job=sayings step=say attempt=1"
        for level, text in [
            ("INFO", f"printed {word}"),
            ("INFO", f"complained {word}"),
            ("INFO", f"logged {word}"),
        ]:
            (line,) = [line for line in lines if text in line]
            assert re.fullmatch(rf"\d\d:\d\d:\d\d {level} +{text}  worker=\d+ {about}( logger=sayings\.say)?", line)
        assert f"WARNING warned of {word}\n    in two lines  worker=" in supervisor.log
    assert "too quiet" not in supervisor.log


def test_json_lines_parse_and_name_run_job_step_and_attempt(
    bind: Callable[[Underway], Underway], start_supervisor: Callable[..., Supervisor]
) -> None:
    bind(talking.app)
    said = talking.sayings.enqueue("it")
    garbled = talking.garbled.enqueue(1)
    supervisor = start_supervisor("talking", "--procs", "1", "--until-idle", "--log-format", "json")
    assert supervisor.wait() == 0
    lines = [json.loads(line) for line in supervisor.log_file.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        assert {"time", "level", "logger", "message"} <= line.keys()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    about = {"run": str(said.id), "job": "sayings", "step": "say", "attempt": 1}
    told = {
        (line["level"], line["message"], line["logger"])
        for line in lines
        if {name: line.get(name) for name in about} == about
    }
    assert told == {
        ("info", "printed it", "underway.worker"),
        ("info", "complained it", "underway.worker"),
        ("info", "logged it", "sayings.say"),
        ("warning", "warned of it\nin two lines", "sayings.say"),
    }
    assert any("no end of line" in line["message"] and line["run"] == str(garbled.id) for line in lines)


def test_binary_output_is_harmless(
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
) -> None:
    bind(talking.app)
    runs = talking.garbled.enqueue_many(range(20))
    supervisor = start_supervisor("talking", "--procs", "1", "--until-idle")
    assert supervisor.wait() == 0
    assert [run.result() for run in runs] == list(range(20))
    assert outcomes(connection) == {"succeeded": 20}
    assert supervisor.log.count("no end of line") == 20


def test_a_worker_that_has_closed_its_output_keeps_working(
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
) -> None:
    bind(hostile.app)
    hostile.mutes.enqueue(0)
    hostile.innocents.enqueue_many(range(20))
    assert start_supervisor("hostile", "--procs", "1", "--until-idle").wait() == 0
    assert states(connection) == {"succeeded": 21}
    assert connection.execute("select count(distinct pid) from underway.attempt").fetchone() == (1,)


def test_a_flood_of_output_blocks_no_other_run(
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
) -> None:
    bind(talking.app)
    flood = talking.floods.enqueue(3)
    start_supervisor("talking", "--procs", "2")
    eventually(lambda: flood.status() is Status.IN_PROGRESS)
    others = [talking.sitting.enqueue(0) for _ in range(20)]
    for run in others:
        assert run.result(20) == 1
    assert flood.status() is Status.IN_PROGRESS, "the others ran at the same time"
    assert flood.wait(30) is Status.SUCCEEDED
    assert outcomes(connection) == {"succeeded": 21}


def test_progress_is_seen_while_a_step_runs(
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
    tmp_path: Path,
) -> None:
    bind(talking.app)
    run = talking.reports.enqueue(str(tmp_path / "enough"))
    start_supervisor("talking", "--procs", "1")

    def progress() -> dict[str, Any] | None:
        query = "select progress from underway.runs where id = %s and state = 'in_progress'"
        row = connection.execute(query, (run.id,)).fetchone()
        return row[0] if row else None

    seen = eventually(progress)
    assert seen is not None
    assert seen["total"] == 1_000_000
    assert seen["note"] == "so far"
    eventually(lambda: (progress() or {"done": 0})["done"] > seen["done"], what="it grows")
    (tmp_path / "enough").touch()
    assert run.wait(10) is Status.SUCCEEDED
    # A finished run has no progress.
    assert progress() is None


def test_a_lock_on_one_run_lets_no_other_lease_expire(
    database: str,
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
) -> None:
    bind(talking.app)
    runs = talking.sitting.enqueue_many([4.0] * 4)
    supervisor = start_supervisor("talking", "--procs", "4")
    eventually(lambda: states(connection) == {"in_progress": 4})
    other = start_supervisor("talking", "--procs", "1")  # it would reap any expired lease
    locked, *free = runs
    with psycopg.connect(database) as stranger:
        stranger.execute("select * from underway.run where id = %s for update", (locked.id,))
        # For two leases; a slow machine has another third of a lease.
        end = time.monotonic() + 2
        while time.monotonic() < end:
            row = connection.execute(
                """select min(lease_expires_at - clock_timestamp()) > interval '0' from underway.run
                where id = any(%s) and state = 'in_progress'""",
                ([run.id for run in free],),
            ).fetchone()
            assert row in ((True,), (None,))
            time.sleep(0.1)
    for run in free:
        assert run.result(30) == 1, "at its first attempt"
    assert "lease" not in "".join(line for line in other.log.splitlines() if str(locked.id) not in line)
    # The locked run could not be renewed: it was released in time and run again, or it ended before that.
    assert locked.wait(30) is Status.SUCCEEDED
    assert [attempt.outcome for attempt in locked.attempts()][-1] == "succeeded"
    assert supervisor.process.poll() is None


def test_a_short_lock_on_a_run_costs_nothing(
    database: str,
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
    tmp_path: Path,
) -> None:
    bind(talking.app)
    run = talking.reports.enqueue(str(tmp_path / "enough"))
    start_supervisor("talking", "--procs", "1")
    eventually(lambda: run.status() is Status.IN_PROGRESS)
    # Held while it ends: the commit skips the row, finds that the run is still owned, and is repeated.
    with psycopg.connect(database) as stranger:
        stranger.execute("select * from underway.run where id = %s for update", (run.id,))
        (tmp_path / "enough").touch()
        time.sleep(0.5)
        assert run.status() is Status.IN_PROGRESS
    assert run.wait(30) is Status.SUCCEEDED
    assert outcomes(connection) == {"succeeded": 1}
