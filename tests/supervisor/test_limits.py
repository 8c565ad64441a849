"""Promise 6: time, memory and lease limits are enforced from outside, whatever a step does."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from apps import limits
from chaos_report import Count
from harness import Supervisor, eventually, outcomes, states

from underway import Status, Underway
from underway.client.run import Run


def test_a_timeout_interrupts_the_step_which_may_clean_up(
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
    tmp_path: Path,
) -> None:
    bind(limits.app)
    tidy = limits.tidying.enqueue(str(tmp_path))
    late = limits.late.enqueue(limits.Slow(1))
    catching = limits.catching.enqueue()
    matching = limits.backtracking.enqueue()
    chattering = [limits.chattering.enqueue() for _ in range(4)]
    assert start_supervisor("limits", "--procs", "3", "--until-idle").wait() == 0
    # `except Exception` in the step did not catch it, and its `finally` had enough time.
    assert (tmp_path / str(tidy.id)).read_text() == "cleaned"
    # An interrupt during the decoding of the input is not lost, and needs no kill.
    for run in (tidy, late, matching, *chattering):
        assert run.status() is Status.FAILED
        (attempt,) = run.attempts()
        assert (attempt.number, attempt.outcome) == (1, "timed_out")
        assert "Interrupt" in (attempt.error or "")
        assert attempt.started_at is not None
        # Not too early. The timeout of half a second starts when the supervisor learns of the start; the worker's clock
        # starts slightly later and once showed 0.497.
        assert (attempt.finished_at - attempt.started_at).total_seconds() >= 0.4
    assert _counters(connection, tidy) == (1, 0)
    # A step may catch the interrupt and still hand over.
    assert catching.result() == "partial result"


def test_processes_of_an_interrupted_step_are_killed(
    bind: Callable[[Underway], Underway], start_supervisor: Callable[..., Supervisor], tmp_path: Path
) -> None:
    """(A step ended when it was asked to, and 300 processes that it had started kept running in its worker.)"""
    bind(limits.app)
    run = limits.leaving.enqueue(str(tmp_path))
    supervisor = start_supervisor("limits", "--procs", "1")
    assert run.wait(20) is Status.FAILED
    assert "Interrupt" in (run.attempts()[0].error or "")
    started = [int(file.name) for file in tmp_path.iterdir() if file.name.isdigit()]
    assert len(started) == 2
    eventually(lambda: not any(map(psutil.pid_exists, started)))
    assert "worker replaced: an interrupted step has left processes" in supervisor.log
    assert limits.calms.enqueue(1).wait(10) is Status.SUCCEEDED


def test_a_step_that_blocks_the_signal_does_not_disable_later_interrupts(
    bind: Callable[[Underway], Underway],
    start_supervisor: Callable[..., Supervisor],
    tmp_path: Path,
) -> None:
    bind(limits.app)
    limits.taking.enqueue()
    tidy = limits.tidying.enqueue(str(tmp_path))
    assert start_supervisor("limits", "--procs", "1", "--until-idle").wait() == 0
    assert (tmp_path / str(tidy.id)).read_text() == "cleaned"
    assert [attempt.outcome for attempt in tidy.attempts()] == ["timed_out"]


STUBBORN = ["in C", "in C without the GIL", "ignores it", "blocks all signals", "stopped", "waits for a daemon"]


@pytest.mark.parametrize(
    "hows",
    [
        [*STUBBORN, "floods the wire at the end"],
        # These use all CPUs while they last.
        pytest.param([*STUBBORN, "floods the log", "floods the wire"], marks=pytest.mark.chaos),
    ],
    ids=["flooding at the end", "flooding from the start"],
)
def test_a_step_that_ignores_the_interrupt_is_killed(
    hows: list[str],
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
    tmp_path: Path,
) -> None:
    bind(limits.app)
    environment = {"LIMITS_FOLDER": str(tmp_path)}
    supervisor = start_supervisor("limits", "--procs", str(len(hows) + 1), "--verbose", env=environment)
    # Before some of them use all CPUs.
    eventually(lambda: supervisor.log.count("worker booted") == len(hows) + 2)
    runs = limits.stubbornness.enqueue_many(hows)
    eventually(lambda: states(connection) == {"in_progress": len(hows)})
    calm = limits.calms.enqueue(1)
    for how, run in zip(hows, runs, strict=True):
        assert run.wait(40) is Status.FAILED, how
        (attempt,) = run.attempts()
        assert (attempt.number, attempt.outcome) == (1, "timed_out"), how
        told = (
            r"the worker was killed: timeout: it did not end within 5.0 s of its interrupt, which came after \d+\.\d s"
        )
        assert re.match(told, attempt.error or ""), how
        assert attempt.started_at is not None
        # Not before the timeout of half a second plus five seconds to clean up.
        assert (attempt.finished_at - attempt.started_at).total_seconds() > 5.4, how
        assert _counters(connection, run) == (1, 0), how
        # Neither the stopped nor the flooding one blocks the others.
        (of_calm,) = calm.attempts()
        assert of_calm.outcome == "succeeded"
        assert of_calm.finished_at < attempt.finished_at, how
    _one_daemon_is_gone(tmp_path)
    assert limits.calms.enqueue(2).wait(10) is Status.SUCCEEDED
    assert supervisor.process.poll() is None


@pytest.mark.chaos
def test_thousands_of_processes_that_use_all_cpus_are_killed_in_time(
    bind: Callable[[Underway], Underway], start_supervisor: Callable[..., Supervisor], count: Count
) -> None:
    bind(limits.app)
    supervisor = start_supervisor("limits", "--procs", "2")
    supervisor.until("serving")
    run = limits.crowding.enqueue(3000)
    eventually(lambda: run.status() is Status.IN_PROGRESS)
    innocents = limits.calms.enqueue_many(range(100))
    assert run.wait(60) is Status.FAILED
    (attempt,) = run.attempts()
    assert attempt.outcome == "timed_out"
    assert attempt.started_at is not None
    took = (attempt.finished_at - attempt.started_at).total_seconds()
    count(spinning=3000, ms_over_its_time=round((took - 15) * 1000))
    # Ten seconds to its timeout, five to clean up.
    assert 15 < took < 20
    for innocent in innocents:
        assert innocent.wait(10) is Status.SUCCEEDED
    eventually(lambda: not _spinning(), within=5)


def test_a_step_over_its_memory_limit_is_killed_with_its_descendants(
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
    tmp_path: Path,
) -> None:
    bind(limits.app)
    hows = ["itself", "itself, in C", "itself, stopped", "child", "detached child", "daemon", "several together"]
    runs = limits.filling.enqueue_many(hows)
    modest = limits.modesty.enqueue()
    environment = {"LIMITS_FOLDER": str(tmp_path)}
    assert start_supervisor("limits", "--procs", "2", "--until-idle", env=environment).wait() == 0
    _one_daemon_is_gone(tmp_path)
    for how, run in zip(hows, runs, strict=True):
        assert run.status() is Status.FAILED, how
        (attempt,) = run.attempts()
        assert (attempt.number, attempt.outcome) == (1, "out_of_memory"), how
        told = r"quarantined after 1 crash: the worker was killed: memory: [\d,]+ MiB resident, more than .* 150 MiB"
        assert re.match(told, attempt.error or ""), how
        assert (attempt.peak_rss or 0) > 150 * 2**20, how
        assert _counters(connection, run) == (0, 1), how
    assert modest.status() is Status.SUCCEEDED


def test_an_interrupt_never_hits_the_next_task(
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
) -> None:
    bind(limits.app)
    for number in range(80):
        limits.edges.enqueue(number)
        limits.calms.enqueue_many(range(5))
    assert start_supervisor("limits", "--procs", "2", "--until-idle").wait(60) == 0
    # No retry is allowed, so an interrupt of the wrong task would fail a run.
    told = connection.execute(
        """select r.job, r.state, a.outcome, count(*)
        from underway.runs r join underway.attempt a on a.run_id = r.id where a.attempt_number = 1 group by 1, 2, 3"""
    ).fetchall()
    ended = {(job, state, outcome): count for job, state, outcome, count in told}
    assert ended.pop(("calms", "succeeded", "succeeded")) == 400
    on_time = ended.pop(("edges", "succeeded", "succeeded"))
    late = ended.pop(("edges", "failed", "timed_out"))
    assert ended == {}
    assert on_time + late == 80
    assert sum(outcomes(connection).values()) == 480


def test_a_long_task_does_not_block_tasks_pipelined_behind_it(
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
) -> None:
    bind(limits.app)
    # All of one step, so that the supervisor expects the long one to be short too.
    short = limits.sleepers.enqueue_many([0.0005] * 600)
    long = limits.sleepers.enqueue(4)
    short += limits.sleepers.enqueue_many([0.0005] * 600)
    assert start_supervisor("limits", "--procs", "2", "--until-idle").wait() == 0
    assert outcomes(connection) == {"succeeded": 1201}
    (ending,) = long.attempts()
    row = connection.execute(
        "select max(finished_at) < %s, max(attempt_number) from underway.attempt where run_id <> %s",
        (ending.finished_at, long.id),
    ).fetchone()
    assert row == (True, 1), "the other worker has run all of them meanwhile"


def test_a_step_that_holds_the_gil_for_three_leases_runs_once(
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
) -> None:
    bind(limits.app)
    runs = limits.c_code.enqueue_many([3.5, 3.5])
    # A second supervisor would claim any run that the first one loses.
    supervisors = [start_supervisor("limits", "--procs", "2") for _ in range(2)]
    for run in runs:
        assert run.wait(30) is Status.SUCCEEDED
    assert outcomes(connection) == {"succeeded": 2}
    for supervisor in supervisors:
        assert "lease" not in supervisor.log


def _spinning() -> list[int]:
    return [
        each.pid for each in psutil.process_iter(["cmdline"]) if "while :; do :; done" in (each.info["cmdline"] or [])
    ]


def _one_daemon_is_gone(folder: Path) -> None:
    (pid,) = [int(file.name) for file in folder.iterdir() if file.name.isdigit()]
    eventually(lambda: not psutil.pid_exists(pid))


def _counters(connection: psycopg.Connection[Any], run: Run[Any]) -> tuple[int, int]:
    row = connection.execute("select attempts, crashes from underway.runs where id = %s", (run.id,)).fetchone()
    assert row is not None
    return row[0], row[1]
