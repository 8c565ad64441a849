"""A supervisor that dies, or only seems to: nothing runs on below it, nothing is lost, nothing is done twice."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from apps import doomed
from harness import APPS, Supervisor, eventually, lives, outcomes, states

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
    # Five children of each: plain, in a session of its own, with an environment of its own, both, and a daemon.
    eventually(lambda: len(os.listdir(folder)) == 10, what="the children run")
    doomed.shorts.enqueue_many(range(100))
    below = psutil.Process(supervisor.pid).children(recursive=True)
    assert {int(name) for name in os.listdir(folder)} <= {process.pid for process in below}
    assert len(below) >= 10 + 4  # the workers, the spare, the keeper
    supervisor.process.kill()
    supervisor.process.wait()
    eventually(lambda: not [process for process in below if lives(process)], what=f"{below} end")

    start_supervisor(DOOMED, "--procs", "2", env=IMPORTABLE | {"HOSTILE_FOLDER": str(folder)})
    assert [run.result(40) for run in runs] == [2, 2]
    eventually(lambda: states(connection) == {"succeeded": 102})
    for run in runs:
        assert [(attempt.number, attempt.outcome) for attempt in run.attempts()] == [(1, "lost"), (2, "succeeded")]
    assert outcomes(connection) == {"lost": 2, "succeeded": 102}


def test_a_supervisor_that_was_stopped_for_too_long_changes_nothing(
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
) -> None:
    bind(doomed.app)
    # One whose result is there when the supervisor wakes up, one that still runs then.
    late = doomed.firsts.enqueue(1.5)
    long = doomed.firsts.enqueue(60)
    stopped = start_supervisor(DOOMED, "--procs", "2", env=IMPORTABLE)
    eventually(lambda: states(connection) == {"in_progress": 2})
    workers = {worker.pid for worker in stopped.workers()}
    time.sleep(0.2)  # both have begun
    stopped.send(signal.SIGSTOP)
    other = start_supervisor(DOOMED, "--procs", "2", env=IMPORTABLE)
    assert [run.result(40) for run in (late, long)] == [2, 2]
    pids = {attempt.pid for run in (late, long) for attempt in run.attempts() if attempt.outcome == "succeeded"}
    assert not pids & workers
    before = connection.execute("select * from underway.finished_run order by id").fetchall()
    stopped.send(signal.SIGCONT)
    # It kills what still runs on without a lease, and drops what has ended without one.
    eventually(lambda: any(text in stopped.log for text in ("could not be renewed in time", "lease lost")))
    eventually(lambda: len(workers & {worker.pid for worker in stopped.workers()}) == 2, what="one of three is killed")
    # Both are well and go on to work.
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


def test_the_keeper_is_kept(bind: Callable[[Underway], Underway], start_supervisor: Callable[..., Supervisor]) -> None:
    bind(doomed.app)
    supervisor = start_supervisor(DOOMED, "--procs", "1", env=IMPORTABLE)
    assert doomed.shorts.enqueue(1).result(30) == 1
    keeper = _keeper(supervisor)
    keeper.kill()
    supervisor.until("the keeper is gone")
    assert doomed.shorts.enqueue(2).result(30) == 2
    another = eventually(lambda: _keeper(supervisor))
    assert another.pid != keeper.pid
    # The new one does its duty.
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
    rows = connection.execute("select pid, number, outcome from underway.attempt").fetchall()
    assert {(number, outcome) for _, number, outcome in rows} == {(1, "succeeded")}
    assert len(rows) == 1000
    by_worker = Counter(pid for pid, _, _ in rows)
    for supervisor in supervisors:
        assert sum(by_worker[worker.pid] for worker in supervisor.workers()) > 100, by_worker


def _keeper(supervisor: Supervisor) -> psutil.Process:
    (keeper,) = [
        child
        for child in psutil.Process(supervisor.pid).children()
        if child.status() != psutil.STATUS_ZOMBIE and any("keeper.py" in word for word in child.cmdline())
    ]
    return keeper
