"""The context of an attempt, its measured usage, and the isolation of one step from the next."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from apps import attempts
from harness import Supervisor, eventually, states

from underway import Status, Underway

Start = Callable[..., Supervisor]
Connection = psycopg.Connection[Any]


@pytest.fixture(autouse=True)
def app(bind: Callable[[Underway], Underway]) -> Underway:
    return bind(attempts.app)


def test_a_step_ends_its_child_by_sigint(start_supervisor: Start) -> None:
    start_supervisor("attempts", "--procs", "1")
    assert attempts.ending_a_child.enqueue().result(30) == -signal.SIGINT


def test_an_interrupt_leaves_no_half_imported_package(start_supervisor: Start, stage: Path) -> None:
    (stage / "slow_package").mkdir()
    (stage / "slow_package" / "part.py").write_text("value = 7")
    go = stage / "go"
    wait = f"import pathlib, time\nwhile not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)"
    (stage / "slow_package" / "__init__.py").write_text(f"from .part import value\n{wait}")
    supervisor = start_supervisor("attempts", "--procs", "1")
    first = attempts.importing.enqueue(str(stage))
    supervisor.until("interrupted after its timeout")
    go.touch()
    first.wait(30)
    second = attempts.importing.enqueue(str(stage))
    assert second.result(30) == 7
    assert first.attempts()[0].pid == second.attempts()[0].pid


# The context


def test_each_step_sees_its_own_run_deadline_and_log(start_supervisor: Start) -> None:
    runs = attempts.looks.enqueue_many(range(200))
    supervisor = start_supervisor("attempts", "--procs", "2")
    for number, run in enumerate(runs):
        seen = run.result(30)
        assert (seen["run"], seen["logger"], seen["attempt"]) == (str(run.id), "looks.look", 1), number
        assert 990 < seen["left"] <= 1000
    supervisor.until("number 199")
    said = {int(line.split("number ")[1].split()[0]): line for line in supervisor.log.splitlines() if "number " in line}
    assert said.keys() == set(range(200))
    for number, run in enumerate(runs):
        assert f"run={run.id}" in said[number]
        assert "job=looks" in said[number]
        assert "step=look " in said[number] + " "
        assert "attempt=1" in said[number]


def test_progress_is_that_of_the_run_that_reports_it(connection: Connection, start_supervisor: Start) -> None:
    runs = attempts.reports.enqueue_many([11, 22])
    start_supervisor("attempts", "--procs", "2")

    def progress() -> dict[str, Any]:
        return dict(connection.execute("select id::text, progress from underway.runs where progress is not null"))

    expected = {
        str(run.id): {"done": number, "total": 100, "note": str(run.id)}
        for number, run in zip((11, 22), runs, strict=True)
    }
    eventually(lambda: progress() == expected)
    # It is interrupted at its deadline, and hands over nevertheless.
    assert [run.result(20) for run in runs] == [11, 22]


# Usage

COSTS = {
    "nothing": 0.0,
    "itself": 0.4,
    "in a child": 0.4,
    "in a child and its child": 0.4,
    "in a child that is not waited for": 0.0,
}


def test_cpu_seconds_include_children_that_were_waited_for(connection: Connection, start_supervisor: Start) -> None:
    """In one worker, after an expensive attempt: its usage must not count for the next one."""
    hows = [how for each in COSTS for how in (each, "nothing")]
    runs = attempts.costs.enqueue_many(hows)
    assert start_supervisor("attempts", "--procs", "1", "--until-idle").wait(60) == 0
    assert states(connection) == {"succeeded": len(hows)}
    for how, run in zip(hows, runs, strict=True):
        (attempt,) = run.attempts()
        spent = connection.execute("select cpu_seconds from underway.attempt where run_id = %s", [run.id]).fetchone()
        assert spent is not None
        # Starting a child takes CPU time too.
        assert COSTS[how] - 0.01 <= spent[0] < COSTS[how] + 0.3, (how, spent)
        assert attempt.started_at is not None


def test_cpu_seconds_are_never_negative(connection: Connection, start_supervisor: Start) -> None:
    count = 2000
    attempts.costs.enqueue_many(["nothing"] * count)
    assert start_supervisor("attempts", "--procs", "2", "--until-idle").wait(60) == 0
    row = connection.execute(
        "select count(cpu_seconds), min(cpu_seconds) >= 0, max(cpu_seconds) < 0.5,"
        " bool_and(started_at <= finished_at), bool_and(peak_rss > 1000000) from underway.attempt"
    ).fetchone()
    assert row == (count, True, True, True, True)


# The interrupt's signal


@pytest.mark.parametrize("together", [False, True], ids=["on its own", "pipelined"])
@pytest.mark.parametrize("how", ["blocks", "ignores", "replaces"])
def test_a_step_that_replaces_the_handler_does_not_disable_later_interrupts(
    start_supervisor: Start, how: str, together: bool
) -> None:
    """Also if both are pipelined, and the next one starts within microseconds."""
    # After many short attempts, the supervisor pipelines these tasks.
    before = attempts.fickles.enqueue_many(["is quick"] * (1000 if together else 0))
    _taking, long = attempts.fickles.enqueue_many([how, "is long"])
    supervisor = start_supervisor("attempts", "--procs", "1")
    assert long.wait(30) is Status.SUCCEEDED, long.attempts()[0].error
    assert long.result() == "interrupted"
    assert all(run.wait(20) is Status.SUCCEEDED for run in before[-3:])
    assert "killed" not in supervisor.log
