"""A supervisor that dies, or only seems to: no process of it survives, nothing is lost, nothing happens twice."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from apps import doomed, leavings
from harness import Supervisor, eventually, lives, outcomes, states
from places import APPS

from underway import Status, Underway

# As a module, since it imports another of the apps.
DOOMED = "apps.doomed:app"
IMPORTABLE = {"PYTHONPATH": str(APPS.parent)}


@pytest.mark.parametrize("how", ["in C", "in Python"])
def test_nothing_outlives_a_killed_supervisor_and_another_finishes_its_work(
    how: str,
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "daemons"
    folder.mkdir()
    bind(doomed.app)
    runs = doomed.parents.enqueue_many([how, how])
    supervisor = start_supervisor(DOOMED, "--procs", "2", env=IMPORTABLE | {"HOSTILE_FOLDER": str(folder)})
    # Each step has five children: plain, in its own session, with its own environment, with both, and a daemon.
    eventually(lambda: len(os.listdir(folder)) == 10, what="the children run")
    doomed.shorts.enqueue_many(range(100))
    below = psutil.Process(supervisor.pid).children(recursive=True)
    assert {int(name) for name in os.listdir(folder)} <= {process.pid for process in below}
    assert len(below) >= 10 + 4  # the workers, the spare, the guardian
    supervisor.process.kill()
    supervisor.process.wait()
    eventually(lambda: not [process for process in below if lives(process)], what=f"{below} end")

    start_supervisor(DOOMED, "--procs", "2", env=IMPORTABLE | {"HOSTILE_FOLDER": str(folder)})
    assert [run.result(40) for run in runs] == [2, 2]
    eventually(lambda: states(connection) == {"succeeded": 102})
    for run in runs:
        assert [(attempt.number, attempt.outcome) for attempt in run.attempts()] == [(1, "lost"), (2, "succeeded")]
    assert outcomes(connection) == {"lost": 2, "succeeded": 102}


def test_a_supervisor_stopped_beyond_its_leases_changes_nothing(
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
) -> None:
    bind(doomed.app)
    # One task has ended when the supervisor resumes, the other still runs.
    late = doomed.firsts.enqueue(1.5)
    long = doomed.firsts.enqueue(60)
    stopped = start_supervisor(DOOMED, "--procs", "2", env=IMPORTABLE)
    eventually(lambda: states(connection) == {"in_progress": 2})
    workers = {worker.pid for worker in stopped.workers()}
    time.sleep(0.2)  # both have started
    stopped.send(signal.SIGSTOP)
    other = start_supervisor(DOOMED, "--procs", "2", env=IMPORTABLE)
    assert [run.result(40) for run in (late, long)] == [2, 2]
    pids = {attempt.pid for run in (late, long) for attempt in run.attempts() if attempt.outcome == "succeeded"}
    assert not pids & workers
    before = connection.execute("select * from underway.finished_run order by id").fetchall()
    stopped.send(signal.SIGCONT)
    # Its guardian has killed the workers before the leases expired and others could take the runs.
    stopped.until("the guardian killed all workers")
    eventually(lambda: len({worker.pid for worker in stopped.workers()} - workers) == 3, what="all are replaced")
    # Both supervisors keep working.
    doomed.shorts.enqueue_many(range(500))
    eventually(lambda: states(connection) == {"succeeded": 502})
    assert (
        connection.execute("select * from underway.finished_run where job = 'firsts' order by id").fetchall() == before
    )
    for run in (late, long):
        assert [(attempt.number, attempt.outcome) for attempt in run.attempts()] == [(1, "lost"), (2, "succeeded")]
    assert outcomes(connection) == {"lost": 2, "succeeded": 502}
    for supervisor in (stopped, other):
        supervisor.send(signal.SIGTERM)
        assert supervisor.wait() == 0


def test_a_cancel_beside_a_stopped_supervisor_does_not_let_two_steps_run_at_once(
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
    stage: Path,
) -> None:
    """(The cancel closed the run and passed its key on while the old step was still running.)"""
    bind(leavings.app)

    def started() -> list[str]:
        return (stage / "begun").read_text().split() if (stage / "begun").exists() else []

    first, patient = leavings.lonely.enqueue("first"), leavings.patient.enqueue("patient")
    frozen = start_supervisor("leavings", "--procs", "2", env={"LEAVINGS": str(stage)})
    eventually(lambda: sorted(started()) == ["first", "patient"])
    frozen.send(signal.SIGSTOP)
    first.cancel()
    second = leavings.lonely.enqueue("second")
    other = start_supervisor("leavings", "--procs", "1", env={"LEAVINGS": str(stage)})
    eventually(lambda: "second" in started())
    assert not (stage / "two bodies").exists()
    (stage / "second.end").touch()
    assert second.result(20) == "second"
    assert first.wait(20) is Status.CANCELLED
    other.send(signal.SIGTERM)
    assert other.wait() == 0
    # A task whose lease is far from its end is released when the supervisor resumes, and not counted as a crash.
    frozen.send(signal.SIGCONT)
    frozen.until("the guardian killed all workers")
    (stage / "patient.end").touch()
    assert patient.result(20) == 2
    assert [(attempt.number, attempt.outcome) for attempt in patient.attempts()] == [(1, "released"), (2, "succeeded")]
    row = connection.execute("select crashes from underway.finished_run where id = %s", (patient.id,)).fetchone()
    assert row == (0,)
    assert not (stage / "two bodies").exists()


def test_leases_are_renewed_on_a_machine_that_has_slept(
    bind: Callable[[Underway], Underway], database: str, stage: Path
) -> None:
    """Its lease clock is ahead of its monotonic clock, so comparing the two would misjudge every lease."""
    slept = ["unshare", "--time", "--boottime", "86400", "--fork"]
    if shutil.which("unshare") is None or subprocess.run([*slept, "true"], capture_output=True).returncode:
        pytest.skip("no clocks of one's own")
    bind(doomed.app)
    run = doomed.firsts.enqueue(2.5)
    supervisor = [sys.executable, "-m", "underway.cli.supervisor", DOOMED, "--until-idle"]
    environment = {**os.environ, "UNDERWAY_DATABASE_URL": database, "HOSTILE_FOLDER": str(stage)}
    environment["PYTHONPATH"] = os.pathsep.join([str(APPS.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([*slept, *supervisor], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [(attempt.number, attempt.outcome) for attempt in run.attempts()] == [(1, "succeeded")]


def test_a_guardian_that_is_stopped_is_replaced(
    bind: Callable[[Underway], Underway], start_supervisor: Callable[..., Supervisor]
) -> None:
    bind(doomed.app)
    supervisor = start_supervisor(DOOMED, "--procs", "1", env=IMPORTABLE)
    busy = doomed.c_code.enqueue(60)
    eventually(lambda: busy.status() is Status.IN_PROGRESS)
    stopped = supervisor.guardian()
    stopped.suspend()
    supervisor.until("the guardian does not run, starting another")
    eventually(lambda: not lives(stopped))
    below = psutil.Process(supervisor.pid).children(recursive=True)
    supervisor.process.kill()
    supervisor.process.wait()
    eventually(lambda: not [process for process in below if lives(process)], what=f"{below} end")


def test_nothing_outlives_a_supervisor_and_its_guardian_that_are_killed_together(
    bind: Callable[[Underway], Underway], start_supervisor: Callable[..., Supervisor], stage: Path, tmp_path: Path
) -> None:
    """Their workers do the guardian's work: as subreapers they are the parents of hidden processes."""
    temporary = tmp_path / "t"  # so that no supervisor of another test cleans up here
    temporary.mkdir()
    bind(doomed.app)
    doomed.parents.enqueue("in Python")
    environment = IMPORTABLE | {"HOSTILE_FOLDER": str(stage), "TMPDIR": str(temporary)}
    supervisor = start_supervisor(DOOMED, "--procs", "2", env=environment)
    eventually(lambda: len(os.listdir(stage)) == 5, what="the children run")
    below = psutil.Process(supervisor.pid).children(recursive=True)
    supervisor.kill_with_guardian()
    eventually(lambda: not [process for process in below if lives(process)], what=f"{below} end")


def test_a_killed_guardian_is_replaced(
    bind: Callable[[Underway], Underway], start_supervisor: Callable[..., Supervisor]
) -> None:
    bind(doomed.app)
    supervisor = start_supervisor(DOOMED, "--procs", "1", env=IMPORTABLE)
    assert doomed.shorts.enqueue(1).result(30) == 1
    guardian = supervisor.guardian()
    guardian.kill()
    supervisor.until("the guardian is gone")
    assert doomed.shorts.enqueue(2).result(30) == 2
    another = eventually(supervisor.guardian)
    assert another.pid != guardian.pid
    # The new guardian works.
    busy = doomed.c_code.enqueue(60)
    eventually(lambda: busy.status() is Status.IN_PROGRESS)
    below = psutil.Process(supervisor.pid).children(recursive=True)
    supervisor.process.kill()
    supervisor.process.wait()
    eventually(lambda: not [process for process in below if lives(process)])


def test_two_supervisors_share_the_work(
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
) -> None:
    bind(doomed.app)
    supervisors = [start_supervisor(DOOMED, "--procs", "1", env=IMPORTABLE) for _ in range(2)]
    for supervisor in supervisors:
        supervisor.until("serving")
    doomed.shorts.enqueue_many(range(1000))
    eventually(lambda: states(connection) == {"succeeded": 1000}, within=60)
    rows = connection.execute("select pid, attempt_number, outcome from underway.attempt").fetchall()
    assert {(number, outcome) for _, number, outcome in rows} == {(1, "succeeded")}
    assert len(rows) == 1000
    by_worker = Counter(pid for pid, _, _ in rows)
    for supervisor in supervisors:
        assert sum(by_worker[worker.pid] for worker in supervisor.workers()) > 100, by_worker
