"""Promise 5: whatever a step does to its worker costs at most its own attempt."""

import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import psycopg
import pytest
from apps import basic, hostile
from harness import Supervisor, eventually, outcomes, states, zombies

from underway import Status, Underway
from underway.client.run import Run


class Ending(NamedTuple):
    """How the first attempt of a scenario should end: its outcome, and a part of its error."""

    outcome: str
    evidence: str = ""


ENDINGS = {
    # deaths
    "killed": Ending("crashed", r"the worker died: signal SIGKILL"),
    "terminated": Ending("crashed", r"the worker died: signal SIGTERM"),
    "segfault": Ending("crashed", r"signal SIGSEGV\n(.|\n)*Fatal Python error: Segmentation fault(.|\n)* in segfault"),
    "segfault_with_large_files": Ending("crashed", r"the worker died: signal SIGSEGV"),
    "abort": Ending("crashed", r"signal SIGABRT\n(.|\n)*Fatal Python error: Aborted(.|\n)* in abort"),
    "exit_0": Ending("crashed", r"the worker died: exit code 0"),
    "exit_3": Ending("crashed", r"the worker died: exit code 3"),
    "last_words": Ending("crashed", "exit code 1\nlast output:\nto be \N{REPLACEMENT CHARACTER}or not to be"),
    "dies_writing": Ending("crashed", r"signal SIGKILL, in the middle of writing"),
    "garbage_on_the_wire": Ending("crashed", r"the worker was killed: .* not a message .* not write to descriptor \d"),
    "closes_all_files": Ending("crashed", r"the worker was killed: it had closed its socket to the supervisor"),
    "closes_the_wire_and_goes_on": Ending("crashed", r"killed: it had closed its socket"),
    "leaves_daemons": Ending("crashed", r"signal SIGKILL"),
    # failures
    "system_exit": Ending("failed", r"^the step raised SystemExit: a step ends by returning"),
    "keyboard_interrupt": Ending("failed", r"^the step raised KeyboardInterrupt: a step ends by returning"),
    "returns_none": Ending("failed", r"returned NoneType; return To\.next\(value\) or To\.done\(result\)"),
    "unprintable": Ending("failed", r"UnprintableError"),
    "unencodable": Ending("failed", "NUL \N{REPLACEMENT CHARACTER}, half a pair"),
    "recursion": Ending("failed", r"RecursionError"),
    "chained_without_end": Ending("failed", r"ValueError"),
    "memory_error": Ending("failed", r"MemoryError"),
    "base_exception": Ending("failed", r"not an Exception"),
    "not_a_number": Ending("failed", r"(?i)nan"),
    "too_large": Ending("failed", r"max_payload is 8,388,608"),
    "no_json": Ending("failed", r"object"),
    "million_lines": Ending("failed", r"characters left out"),
    # harmless
    "nearly_too_large": Ending("succeeded"),
    "child_returns": Ending("succeeded"),
    "child_raises": Ending("succeeded"),
    "takes_the_signals": Ending("succeeded"),
    "removes_its_directory": Ending("succeeded"),
    "logs_from_threads": Ending("succeeded"),
}
CRASHES = {how for how, ending in ENDINGS.items() if ending.outcome == "crashed"}


def test_every_scenario_is_charged_to_its_own_attempt(
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
    tmp_path: Path,
) -> None:
    daemons = tmp_path / "daemons"
    daemons.mkdir()
    bind(hostile.app)
    assert ENDINGS.keys() == hostile.scenarios.keys()
    runs, innocents = {}, []
    for how in random.sample(sorted(ENDINGS), len(ENDINGS)):
        runs[how] = hostile.hostile.enqueue(how)
        innocents += hostile.innocents.enqueue_many(range(2))
    supervisor = start_supervisor("hostile", "--until-idle", env={"HOSTILE_FOLDER": str(daemons)})
    assert supervisor.wait(90) == 0

    attempts = {how: run.attempts() for how, run in runs.items()}
    told = {how: [(attempt.number, attempt.outcome) for attempt in made] for how, made in attempts.items()}
    expected = {
        how: [(1, "succeeded")] if ending.outcome == "succeeded" else [(1, ending.outcome), (2, "succeeded")]
        for how, ending in ENDINGS.items()
    }
    assert told == expected
    for how, ending in ENDINGS.items():
        assert re.search(ending.evidence, attempts[how][0].error or ""), f"{how}: {attempts[how][0].error}"
        assert "\0" not in (attempts[how][0].error or "")
        assert len(attempts[how][0].error or "") < 50_000
    # Each run has one charge, on the right counter.
    counted = connection.execute("select id, attempts, crashes from underway.runs where job = 'hostile'").fetchall()
    by_run = {run: (attempts, crashes) for run, attempts, crashes in counted}
    assert {how: by_run[run.id] for how, run in runs.items()} == {
        how: (int(ending.outcome == "failed"), int(how in CRASHES)) for how, ending in ENDINGS.items()
    }
    assert runs["child_returns"].result() == runs["child_raises"].result() == "parent"
    _assert_untouched(connection, innocents)
    # The supervisor has exited, and none of the processes below it is left.
    assert len(os.listdir(daemons)) == 5
    assert [pid for pid in map(int, os.listdir(daemons)) if _lives(pid)] == []


def test_nothing_a_worker_started_outlives_it(
    bind: Callable[[Underway], Underway], start_supervisor: Callable[..., Supervisor], tmp_path: Path
) -> None:
    daemons = tmp_path / "daemons"
    daemons.mkdir()
    bind(hostile.app)
    run = hostile.hostile.enqueue("leaves_daemons")
    supervisor = start_supervisor("hostile", "--procs", "1", env={"HOSTILE_FOLDER": str(daemons)})
    assert run.wait(30) is Status.SUCCEEDED
    assert len(os.listdir(daemons)) == 5
    eventually(lambda: not any(_lives(int(pid)) for pid in os.listdir(daemons)), what="the daemons end")
    eventually(lambda: not zombies(psutil.Process(supervisor.pid)), what="they are collected")


def test_a_run_that_keeps_killing_its_worker_is_quarantined_with_evidence(
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
) -> None:
    bind(hostile.app)
    run = hostile.poisonous.enqueue("segfault")
    innocents = hostile.innocents.enqueue_many(range(50))
    assert start_supervisor("hostile", "--procs", "1", "--until-idle").wait() == 0
    assert run.status() is Status.FAILED
    assert [(attempt.number, attempt.outcome) for attempt in run.attempts()] == [(1, "crashed"), (2, "crashed")]
    row = connection.execute(
        "select attempts, crashes, error from underway.finished_run where id = %s", (run.id,)
    ).fetchone()
    assert row is not None
    attempts, crashes, error = row
    assert (attempts, crashes) == (0, 2)
    assert error.startswith("quarantined after 2 crashes: the worker died: signal SIGSEGV")
    assert "famous last words" in error
    assert "Fatal Python error: Segmentation fault" in error
    _assert_untouched(connection, innocents)


def test_an_idle_worker_that_dies_is_replaced_without_a_charge(
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
) -> None:
    bind(basic.app)
    supervisor = start_supervisor("basic", "--procs", "1")
    assert basic.numbers.enqueue(1).result(30) == 1
    for signalled in (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM):
        # The worker and the spare, so that the next task runs in a new one.
        before = eventually(lambda: _booted(supervisor, 2))
        for worker in before:
            worker.send_signal(signalled)
        eventually(lambda gone=before: not any(worker.is_running() for worker in gone))  # type: ignore[misc]
        assert basic.numbers.enqueue(2).result(30) == 2
    supervisor.until("an idle worker died: signal SIGTERM")
    assert states(connection) == {"succeeded": 4}
    assert outcomes(connection) == {"succeeded": 4}
    assert _charges(connection) == (0, 0)


def test_workers_killed_at_random_cost_only_what_they_ran(
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
) -> None:
    # Steps of 2 ms: several are pipelined, and a worker may die at any point between them.
    bind(hostile.app)
    hostile.innocents.enqueue_many(range(1000))
    supervisor = start_supervisor("hostile", "--procs", "3", "--until-idle")
    supervisor.until("serving")
    kills = 0
    while supervisor.process.poll() is None:
        if kills < 8 and (workers := _workers(supervisor)):
            random.choice(workers).kill()
            kills += 1
        time.sleep(random.uniform(0.02, 0.15))
    assert supervisor.wait() == 0
    assert states(connection) == {"succeeded": 1000}
    ended = outcomes(connection)
    assert ended.pop("succeeded") == 1000
    crashed = ended.pop("crashed", 0)
    assert ended == {}
    assert crashed <= kills
    assert _charges(connection) == (0, crashed)
    # Every run has consecutive attempt numbers, and the last one succeeded: no unstarted task was charged.
    assert connection.execute(
        """select count(*) from (
            select array_agg(attempt_number order by token) as numbers, count(*)::int as n from underway.attempt
            group by run_id
        ) t where numbers <> array(select generate_series(1, n))"""
    ).fetchone() == (0,)


def test_tasks_pipelined_behind_a_death_are_not_charged(
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
) -> None:
    bind(basic.app)
    # Dozens of no-op steps are pipelined. A stopped worker has started at most one of them.
    count = 8_000
    basic.numbers.enqueue_many(range(count))
    supervisor = start_supervisor("basic", "--procs", "1", "--until-idle")
    eventually(lambda: outcomes(connection).get("succeeded", 0) > 1000)
    for worker in _workers(supervisor):
        worker.send_signal(signal.SIGSTOP)
    time.sleep(0.1)  # the supervisor keeps sending tasks to it
    for worker in _workers(supervisor):
        worker.kill()
    assert supervisor.wait(60) == 0
    assert states(connection) == {"succeeded": count}
    ended = outcomes(connection)
    assert ended.pop("succeeded") == count
    assert ended.get("crashed", 0) <= 1
    assert _charges(connection) == (0, ended.get("crashed", 0))


BOOT_DEATHS = {
    "raise": r"RuntimeError: this app is broken\n",
    "kill": r"signal SIGKILL",
    "segfault": r"signal SIGSEGV\n(.|\n)*Fatal Python error: Segmentation fault",
    "exit_0": r"exit code 0",
    "sys_exit": r"SystemExit: not today",
    "no_app": r"is a str, not an Underway app",
    "misfit": r"JobDefinitionError",
}


@pytest.mark.parametrize("how", BOOT_DEATHS)
def test_an_app_that_does_not_boot_ends_the_supervisor(
    how: str, connection: psycopg.Connection[Any], start_supervisor: Callable[..., Supervisor]
) -> None:
    supervisor = start_supervisor("broken", "--procs", "1", env={"BROKEN": how})
    assert supervisor.wait() == 3
    assert re.search(BOOT_DEATHS[how], supervisor.log), supervisor.log
    assert supervisor.log.count("does not boot") == 1
    assert supervisor.log.count("Traceback") == (how in ("raise", "sys_exit", "no_app", "misfit")), "said once"
    assert "trying again" not in supervisor.log


@pytest.mark.parametrize("how", ["raise", "kill"])
def test_workers_that_no_longer_boot_cost_no_attempts(
    how: str,
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
    tmp_path: Path,
) -> None:
    switch = tmp_path / "broken"
    supervisor = start_supervisor("broken", "--procs", "1", env={"BROKEN_FILE": str(switch)})
    supervisor.until("serving")
    eventually(lambda: _booted(supervisor, 2))
    switch.write_text(how)
    for worker in _workers(supervisor):
        worker.kill()
    eventually(lambda: supervisor.log.count("did not boot (") >= 2)
    # Without workers nothing is claimed.
    connection.execute("select underway.enqueue('fragile', '7')")
    eventually(lambda: supervisor.log.count("did not boot (") >= 4)
    assert states(connection) == {"pending": 1}
    switch.unlink()
    eventually(lambda: states(connection) == {"succeeded": 1})
    assert outcomes(connection) == {"succeeded": 1}
    assert _charges(connection) == (0, 0)


def _charges(connection: psycopg.Connection[Any]) -> tuple[int, int]:
    """All attempts and crashes with which runs were charged."""
    row = connection.execute("select sum(attempts)::int, sum(crashes)::int from underway.runs").fetchone()
    assert row is not None
    return row[0], row[1]


def _assert_untouched(connection: psycopg.Connection[Any], innocents: list[Run[int]]) -> None:
    """Each of them ran once, without any charge."""
    ids = [run.id for run in innocents]
    rows = connection.execute(
        """select a.attempt_number, a.outcome, r.state, r.attempts, r.crashes, count(*)
        from underway.attempt a join underway.runs r on r.id = a.run_id
        where a.run_id = any(%s) group by 1, 2, 3, 4, 5""",
        (ids,),
    ).fetchall()
    assert rows == [(1, "succeeded", "succeeded", 0, 0, len(ids))]


def _workers(supervisor: Supervisor) -> list[psutil.Process]:
    return [] if supervisor.process.poll() is not None else _tolerant(supervisor)


def _tolerant(supervisor: Supervisor) -> list[psutil.Process]:
    try:
        return supervisor.workers()
    except psutil.Error:
        return []


def _booted(supervisor: Supervisor, count: int) -> list[psutil.Process]:
    """Its workers, if there are this many and all are idle."""
    workers = supervisor.workers()
    try:
        settled = all(worker.status() == "sleeping" and worker.create_time() < time.time() - 0.7 for worker in workers)
    except psutil.Error:
        return []
    return workers if len(workers) == count and settled else []


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
