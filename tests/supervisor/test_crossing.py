"""Steps whose hand-over waits for another transaction, deadlocks, or is refused, because they cancel runs via cx.tx."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from apps import crossing
from apps.crossing import Rival
from db import Connection, value
from harness import Supervisor, eventually

from underway import Run, Status, Underway
from underway.supervisor.exit_codes import ExitCode
from underway.testing import drain

Start = Callable[..., Supervisor]


@pytest.fixture(autouse=True)
def app(bind: Callable[[Underway], Underway], connection: Connection) -> Underway:
    connection.execute("create table witness (n int)")
    return bind(crossing.app)


def ended(run: Run[Any]) -> list[str]:
    return [attempt.outcome for attempt in run.attempts()]


def errors(run: Run[Any]) -> str:
    return " ".join(attempt.error or "" for attempt in run.attempts())


def witnesses(connection: Connection) -> int:
    return int(value(connection, "select count(*) from witness"))


def test_two_steps_that_cancel_each_others_runs_through_cx_tx(start_supervisor: Start, tmp_path: Path) -> None:
    """Postgres detects the deadlock and fails one of them, long before their timeout of 15 minutes."""
    runs = {}
    for name, other in (("a", "b"), ("b", "a")):
        runs[name] = crossing.racing.enqueue(Rival(name, other, str(tmp_path)))
        (tmp_path / name).write_text(str(runs[name].id))
    supervisor = start_supervisor("crossing", "--procs", "2")
    ends = {name: run.wait(60) for name, run in runs.items()}
    assert sorted(ends.values()) == [Status.CANCELLED, Status.SUCCEEDED]
    (winner,) = [name for name, status in ends.items() if status is Status.SUCCEEDED]
    assert (runs[winner].result(), ended(runs[winner])) == (winner, ["succeeded"])
    assert "killed" not in supervisor.log


def lock(other: Connection, run: Run[Any]) -> None:
    other.execute("select from underway.run where id = %s for update", [run.id])


def waits(connection: Connection) -> bool:
    """Whether pg_stat_activity shows that a step's transaction waits for a lock."""
    waiting = (
        "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and application_name ~ '^underway [0-9]'"
    )
    return bool(value(connection, waiting))


def begin(start: Start, run: Run[Any], folder: Path, other: Connection, look: Connection) -> Supervisor:
    """Start a supervisor whose step has returned, and whose hand-over waits for the other's lock."""
    supervisor = start("crossing", "--procs", "1", "--grace", "0.2")
    eventually(lambda: (folder / "here").exists())
    lock(other, run)
    (folder / "go").touch()
    eventually(lambda: waits(look))
    return supervisor


def test_a_hand_over_that_waits_for_a_client_is_interrupted_by_its_timeout(
    database: str, connection: Connection, start_supervisor: Start, tmp_path: Path
) -> None:
    run = crossing.waiting.enqueue(str(tmp_path))
    with psycopg.connect(database) as other:
        supervisor = begin(start_supervisor, run, tmp_path, other, connection)
        supervisor.until("timed_out")
        eventually(lambda: not waits(connection))
    assert run.result(20) == 2
    assert ended(run) == ["timed_out", "succeeded"]
    assert "killed" not in supervisor.log
    first, second = run.attempts()
    assert first.pid == second.pid


def test_a_hand_over_that_waits_for_a_client_is_interrupted_by_a_stop(
    database: str, connection: Connection, start_supervisor: Start, tmp_path: Path
) -> None:
    run = crossing.patient.enqueue(str(tmp_path))
    with psycopg.connect(database) as other:
        supervisor = begin(start_supervisor, run, tmp_path, other, connection)
        supervisor.send(signal.SIGTERM)
        eventually(lambda: not waits(connection))
    assert supervisor.wait() == ExitCode.KILLED_WORK
    assert ended(run) == ["released"]


def test_a_hand_over_that_waits_for_a_client_continues_when_it_commits(
    database: str, connection: Connection, start_supervisor: Start, tmp_path: Path
) -> None:
    run = crossing.patient.enqueue(str(tmp_path))
    with psycopg.connect(database) as other:
        begin(start_supervisor, run, tmp_path, other, connection)
    assert run.result(20) == 1


def test_a_hand_over_that_waits_for_a_cancel_is_refused(
    database: str, connection: Connection, start_supervisor: Start, tmp_path: Path
) -> None:
    run = crossing.patient.enqueue(str(tmp_path))
    with psycopg.connect(database) as other:
        begin(start_supervisor, run, tmp_path, other, connection)
        assert run.cancel(conn=other)
    assert run.wait(20) is Status.CANCELLED
    assert ended(run) == ["cancelled"]


@pytest.mark.parametrize("action", ["own_by_handle", "own_by_id", "own_with_its_job"])
def test_cancelling_ones_own_run_through_cx_tx_raises_at_the_call(connection: Connection, action: str) -> None:
    run = crossing.ending.enqueue(action)
    drain(crossing.ending)
    assert "(conn=cx.tx) inside a step of the same run (ending.end_oneself)" in errors(run)
    assert "raise Fail to end the run, or cancel it without conn=" in errors(run)
    assert (run.status() is Status.CANCELLED, witnesses(connection)) == (False, 0)


@pytest.mark.parametrize("action", ["own_by_key", "own_in_sql", "own_in_a_savepoint", "own_row", "own_row_deleted"])
def test_a_change_of_the_own_row_found_at_the_hand_over_fails_the_run(
    connection: Connection, start_supervisor: Start, action: str
) -> None:
    run = crossing.ending.enqueue(action, unique_key=action)
    start_supervisor("crossing", "--procs", "1", "--until-idle").wait()
    assert (run.status(), ended(run)) == (Status.FAILED, ["failed"])
    assert "the step has cancelled its own run through cx.tx, or written to its row" in errors(run)
    assert "All of it is rolled back, and the run was not cancelled" in errors(run)
    assert witnesses(connection) == 0


@pytest.mark.parametrize("action", ["own_priority", "own_undone", "own_redrive"])
def test_a_rolled_back_change_of_the_own_row_is_harmless(
    connection: Connection, start_supervisor: Start, action: str
) -> None:
    run = crossing.ending.enqueue(action)
    start_supervisor("crossing", "--procs", "1", "--until-idle").wait()
    assert (run.status(), ended(run), witnesses(connection)) == (Status.SUCCEEDED, ["succeeded"], 1)


@pytest.mark.parametrize("action", ["own_without_conn", "own_without_conn_and_return"])
def test_a_step_that_cancels_its_own_run_without_its_transaction_ends_as_cancelled(
    connection: Connection, start_supervisor: Start, action: str
) -> None:
    run = crossing.ending.enqueue(action)
    supervisor = start_supervisor("crossing", "--procs", "1", "--until-idle")
    supervisor.wait()
    assert (run.status(), ended(run), witnesses(connection)) == (Status.CANCELLED, ["cancelled"], 0)
    assert "killed" not in supervisor.log
