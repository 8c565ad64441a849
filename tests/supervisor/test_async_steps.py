"""Steps written as `async def`: one loop per worker, interrupts inside the coroutine, nothing left running."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from apps import coroutines
from harness import Supervisor, eventually, outcomes, states

from underway import RunFailed, Status, Underway

Start = Callable[..., Supervisor]


@pytest.fixture
def start(bind: Callable[[Underway], Underway], start_supervisor: Start, tmp_path: Path) -> Start:
    """Start a supervisor for apps/coroutines.py, whose steps write files to tmp_path."""
    bind(coroutines.app)
    return lambda *options: start_supervisor("coroutines", *options, env={"FOLDER": str(tmp_path)})


def test_steps_of_both_kinds_in_one_chain_and_one_loop_per_worker(start: Start) -> None:
    start("--procs", "1")
    runs = coroutines.chained.enqueue_many(range(20))
    results = [run.result(20) for run in runs]
    assert [value for value, _, _ in results] == [number + 2 for number in range(20)]
    assert {loops for _, loops, _ in results} == {1}
    assert len({pid for _, _, pid in results}) == 1


def test_a_timeout_interrupts_a_coroutine_at_any_point(start: Start, tmp_path: Path) -> None:
    runs = {way: coroutines.interrupted.enqueue(way) for way in coroutines.ways}
    assert start("--procs", "3", "--until-idle").wait() == 0
    for way, run in runs.items():
        (attempt,) = run.attempts()
        assert (attempt.outcome, run.status()) == ("timed_out", Status.FAILED), (way, attempt.error)
        assert "AsyncInterrupt: timeout" in (attempt.error or ""), way
        assert attempt.started_at is not None
        # not too early, and the event loop was available to the cleanup
        assert (attempt.finished_at - attempt.started_at).total_seconds() >= 0.4, way
        assert (tmp_path / way).read_text() == "Interrupt: timeout"


def test_a_coroutine_that_catches_the_interrupt_may_still_hand_over(start: Start) -> None:
    run = coroutines.partial.enqueue()
    start("--procs", "1")
    assert run.result(20) == "partial"


def test_a_coroutine_that_swallows_the_interrupt_is_killed(start: Start) -> None:
    run = coroutines.stubborn.enqueue()
    start("--procs", "1")
    assert run.wait(20) is Status.FAILED
    (attempt,) = run.attempts()
    assert attempt.outcome == "timed_out"
    assert (attempt.error or "").startswith("the worker was killed: timeout")


def test_a_shutdown_interrupts_a_coroutine_without_a_charge(
    start: Start, connection: psycopg.Connection[Any], tmp_path: Path
) -> None:
    run = coroutines.waiting.enqueue("told")
    supervisor = start("--procs", "1", "--grace", "0.2")
    supervisor.until("waiting to be told")  # a run is in progress before its step's first line
    supervisor.send(signal.SIGTERM)
    supervisor.wait()
    assert (tmp_path / "told").read_text() == "shutdown"
    assert [attempt.outcome for attempt in run.attempts()] == ["released"]
    assert run.status() is Status.PENDING


def test_an_interrupt_never_hits_the_next_coroutine(start: Start, connection: psycopg.Connection[Any]) -> None:
    for number in range(60):
        coroutines.edges.enqueue(number)
        coroutines.calms.enqueue_many(range(5))
    assert start("--procs", "2", "--until-idle").wait(60) == 0
    # No retry is allowed, so an interrupt of the wrong task would fail a run.
    failed = connection.execute(
        "select job, outcome from underway.runs r join underway.attempt a on a.run_id = r.id where state = 'failed'"
    ).fetchall()
    assert set(failed) <= {("edges", "timed_out")}
    assert sum(states(connection).values()) == sum(outcomes(connection).values()) == 360


def test_tasks_that_a_step_leaves_running_are_cancelled_and_logged(start: Start, tmp_path: Path) -> None:
    run = coroutines.leaving.enqueue()
    supervisor = start("--procs", "1")
    assert run.result(20) == "done"
    assert (tmp_path / "left behind").exists()
    supervisor.until("the step has ended, tasks that it left running are cancelled: straggler")


def test_connections_of_the_async_client_outlive_the_step_that_opens_them(start: Start) -> None:
    supervisor = start("--procs", "1")
    for connections in (0, 2):  # the second time it needs more connections than are open
        assert coroutines.looking.enqueue(connections).result(20) == Status.IN_PROGRESS
    assert "tasks that it left running" not in supervisor.log


def test_an_interrupt_leaves_no_task_to_the_next_step(start: Start) -> None:
    run = coroutines.leaving_slowly.enqueue()
    start("--procs", "1")
    assert run.result(20) == "done"
    assert coroutines.alone.enqueue().result(20) == 1


def test_any_exception_of_a_coroutine_fails_the_attempt_but_not_the_loop(start: Start) -> None:
    expected = {
        "SystemExit": "the step raised SystemExit: a step ends by returning",
        "SystemExit in a task": "the step raised SystemExit: a step ends by returning",
        "KeyboardInterrupt in a callback": "the step raised KeyboardInterrupt: a step ends by returning",
        "CancelledError": "CancelledError: of its own",
        "stops the loop": "Event loop stopped before Future completed",
        "returns None": "step 'raises' returned NoneType; return To.next(value) or To.done(result)",
        "anything else": "ValueError: anything else",
    }
    start("--procs", "1")
    runs = {how: coroutines.raising.enqueue(how) for how in expected}
    for how, run in runs.items():
        with pytest.raises(RunFailed) as failed:
            run.result(20)
        assert expected[how] in str(failed.value)
        assert [attempt.outcome for attempt in run.attempts()] == ["failed"], how
    # in the same worker, on the same loop
    assert len({attempt.pid for run in runs.values() for attempt in run.attempts()}) == 1
    assert coroutines.calms.enqueue(1).result(20) == 1


def test_a_coroutine_counts_as_inside_its_step_in_tasks_and_threads(
    start: Start, connection: psycopg.Connection[Any]
) -> None:
    start("--procs", "1")
    said = coroutines.refusing.enqueue().result(20)
    assert len(said) == 4
    assert all(text.startswith("enqueue without conn= inside a step (refusing.refused): ") for text in said)
    eventually(lambda: states(connection) == {"succeeded": 2})
