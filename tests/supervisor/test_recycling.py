"""Workers that have reached a limit are replaced between two tasks, without any effect on runs."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from apps import doomed, leaking
from chaos_report import Count
from harness import Supervisor, eventually, outcomes, states
from places import APPS
from underway_command import document, output

from underway import Status, Underway
from underway.supervisor.workers.recycle import RecycleLimits, WorkerUsage

MIB = 2**20


# The limits


def used(limits: RecycleLimits, *, tasks: int = 1, rss: int = 0, seed: int = 1) -> WorkerUsage:
    usage = WorkerUsage(limits, random.Random(seed))
    usage.tasks, usage.rss = tasks, rss
    return usage


def test_each_worker_is_due_at_a_random_point_in_the_last_fifth() -> None:
    marks = RecycleLimits(tasks=1000, age=1000, memory=1000 * MIB)
    now = time.monotonic()

    def by_tasks(at: int, seed: int) -> str:
        return used(marks, tasks=at, seed=seed).reached(now)

    def by_age(at: int, seed: int) -> str:
        return used(marks, seed=seed).reached(now + at)

    def by_memory(at: int, seed: int) -> str:
        return used(marks, rss=at * MIB, seed=seed).reached(now)

    for reached in (by_tasks, by_age, by_memory):
        due_at = {next(at for at in range(700, 1100) if reached(at, seed)) for seed in range(30)}
        assert 800 <= min(due_at) < max(due_at) <= 1000, reached
        assert len(due_at) > 20, reached


def test_a_worker_at_its_full_limit_is_over_it() -> None:
    marks = RecycleLimits(tasks=10, age=1, memory=100 * MIB)
    assert not used(marks, tasks=9, rss=99 * MIB).over_limit
    assert used(marks, tasks=10).over_limit
    assert used(marks, rss=100 * MIB).over_limit
    # Age alone is never urgent.
    aged = used(marks)
    assert aged.reached(time.monotonic() + 5)
    assert not aged.over_limit


def test_a_worker_that_starts_too_large_runs_at_least_one_task() -> None:
    marks = RecycleLimits(memory=MIB)
    fresh = used(marks, tasks=0, rss=50 * MIB)
    assert not fresh.reached(time.monotonic())
    assert not fresh.over_limit
    assert used(marks, tasks=1, rss=50 * MIB).reached(time.monotonic()) == "50 MiB"


def test_without_limits_a_worker_is_never_due() -> None:
    assert not used(RecycleLimits(), tasks=10**9, rss=2**40).reached(time.monotonic() + 10**9)


# With supervisors


def test_no_worker_runs_more_tasks_than_its_limit(
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
) -> None:
    bind(leaking.app)
    leaking.counts.enqueue_many(range(60))
    supervisor = start_supervisor("leaking", "--procs", "2", "--max-tasks", "10", "--until-idle")
    assert supervisor.wait() == 0
    _assert_all_ran_once(connection, 60)
    by_worker = _tasks_by_worker(connection)
    assert max(by_worker.values()) <= 10
    # They are replaced at random points in the last fifth, and none earlier.
    assert supervisor.log.count("worker replaced:") >= 4
    assert all(8 <= int(line.split()[4]) <= 10 for line in _lines(supervisor, "worker replaced:"))


def test_a_leak_stays_bounded(
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
) -> None:
    bind(leaking.app)
    runs = leaking.leaks.enqueue_many(range(70))
    supervisor = start_supervisor("leaking", "--procs", "2", "--max-memory", "110 MiB")
    largest = 0
    while any(run.status() is not Status.SUCCEEDED for run in runs[-2:]):
        largest = max([largest, *(_rss(worker) for worker in supervisor.workers())])
        time.sleep(0.02)
    eventually(lambda: states(connection) == {"succeeded": 70})
    _assert_all_ran_once(connection, 70)
    # The limit, the growth between two samples, and one task. Without a limit, 70 tasks would leave 175 MiB each.
    assert 80 * MIB < largest < 160 * MIB
    assert "MiB" in _lines(supervisor, "worker replaced:")[0]


def test_age_replaces_idle_workers_and_waits_for_the_task_of_a_busy_one(
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
    stage: Path,
) -> None:
    bind(doomed.app)
    supervisor = start_supervisor(
        "apps.doomed:app", "--procs", "2", "--max-age", "0.5",
        env={"PYTHONPATH": str(APPS.parent), "HOSTILE_FOLDER": str(stage)},
    )  # fmt: skip
    supervisor.until("serving")
    busy = doomed.told.enqueue("enough")
    eventually(lambda: busy.status() is Status.IN_PROGRESS)
    eventually(lambda: supervisor.log.count("worker replaced:") >= 3, what="the idle one is replaced, and again")
    assert busy.status() is Status.IN_PROGRESS
    (stage / "enough").touch()
    assert busy.result(10) == "enough"
    assert [(attempt.number, attempt.outcome) for attempt in busy.attempts()] == [(1, "succeeded")]
    (attempt,) = busy.attempts()
    eventually(lambda: attempt.pid not in {worker.pid for worker in supervisor.workers()}, what="it was old")
    supervisor.send(signal.SIGTERM)
    assert supervisor.wait() == 0
    assert outcomes(connection) == {"succeeded": 1}


def test_workers_whose_replacements_do_not_boot_keep_working(
    connection: psycopg.Connection[Any],
    database: str,
    start_supervisor: Callable[..., Supervisor],
    tmp_path: Path,
) -> None:
    switch = tmp_path / "broken"
    supervisor = start_supervisor(
        "broken", "--procs", "1", "--max-tasks", "1", "--verbose", env={"BROKEN_FILE": str(switch)}
    )
    eventually(lambda: supervisor.log.count("worker booted") == 2)
    eventually(lambda: connection.execute("select from underway.job").rowcount == 1)
    switch.write_text("raise")
    for value in range(20):
        connection.execute("select underway.enqueue('fragile', %s)", [str(value)])
    eventually(lambda: states(connection) == {"succeeded": 20}, what="two workers for 20 tasks")
    _assert_all_ran_once(connection, 20)
    (label,) = eventually(lambda: [row for row in document("supervisors", database=database) if row["trouble"]])
    assert label["state"] == "unhealthy"
    assert label["trouble"] == "workers do not boot: RuntimeError: this app is broken"
    assert "unhealthy" in output("supervisors", database=database)
    switch.unlink()
    eventually(lambda: [row["trouble"] for row in document("supervisors", database=database)] == [None])


@pytest.mark.chaos
def test_a_fresh_worker_for_each_task(
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
    count: Count,
) -> None:
    bind(leaking.app)
    leaking.counts.enqueue_many(range(300))
    supervisor = start_supervisor("leaking", "--procs", "2", "--max-tasks", "1")
    eventually(lambda: states(connection).get("succeeded", 0) >= 20, within=60)
    open_files = psutil.Process(supervisor.pid).num_fds()
    eventually(lambda: states(connection) == {"succeeded": 300}, within=300)
    count(workers_recycled=300, runs=300, lost=300 - states(connection)["succeeded"])
    _assert_all_ran_once(connection, 300)
    # No more was claimed than could soon be started; tasks that wait too long are released.
    (releases,) = connection.execute("select sum(releases)::int from underway.runs").fetchone() or (0,)
    assert releases < 30
    assert set(_tasks_by_worker(connection).values()) == {1}
    assert psutil.Process(supervisor.pid).num_threads() == 2  # the main thread and the log writer
    assert psutil.Process(supervisor.pid).num_fds() <= open_files + 15
    supervisor.send(signal.SIGTERM)
    assert supervisor.wait() == 0


def _assert_all_ran_once(connection: psycopg.Connection[Any], runs: int) -> None:
    assert states(connection) == {"succeeded": runs}
    assert outcomes(connection) == {"succeeded": runs}
    charged = "select sum(attempts)::int, sum(crashes)::int from underway.runs"
    assert connection.execute(charged).fetchone() == (0, 0)


def _tasks_by_worker(connection: psycopg.Connection[Any]) -> dict[int, int]:
    return dict(connection.execute("select pid, count(*) from underway.attempt group by pid").fetchall())


def _lines(supervisor: Supervisor, text: str) -> list[str]:
    return [line for line in supervisor.log.splitlines() if text in line]


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0
