"""From step to step with real supervisors: order, kills and stops between two steps, several supervisors."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from apps import staying
from harness import Supervisor, eventually, outcomes, states

from underway import Status, Underway

Start = Callable[..., Supervisor]
Bind = Callable[[Underway], Underway]
Connection = psycopg.Connection[Any]

FOLDER = "STAYING_FOLDER"


def steps_in_order(connection: Connection) -> list[tuple[str, str]]:
    """The steps that were executed, with their runs, in the order in which they started."""
    return connection.execute("select run_id::text, step from underway.attempt order by started_at").fetchall()


def counters(connection: Connection) -> set[tuple[int, int]]:
    """The attempts and crashes with which runs are charged."""
    query = "select attempts, crashes from underway.run union select attempts, crashes from underway.finished_run"
    return set(connection.execute(query).fetchall())


@pytest.mark.parametrize(("seconds", "count"), [(0.0, 10_000), (0.01, 300), (0.1, 40)], ids=["no-ops", "short", "long"])
def test_the_steps_of_a_run_follow_each_other(
    bind: Bind, connection: Connection, start_supervisor: Start, seconds: float, count: int
) -> None:
    """One worker and many runs: a run that has started finishes first, except for tasks that the worker already had."""
    bind(staying.app)
    staying.pairs.enqueue_many([seconds] * count)
    assert start_supervisor("staying", "--procs", "1", "--until-idle").wait(90) == 0
    assert states(connection) == {"succeeded": count}
    order = steps_in_order(connection)
    assert len(order) == 2 * count
    begun = {run: number for number, (run, step) in enumerate(order) if step == "begin"}
    apart = sorted(number - begun[run] for number, (run, step) in enumerate(order) if step == "finish")
    assert apart[0] >= 1
    if seconds >= 0.1:
        # While the first step of a run is committed, the worker starts one other run at most.
        assert apart[count // 2] <= 2, apart
        # A simultaneous claim may use the free worker, and then prefetched tasks come first.
        assert apart[-1] <= 15, apart
    else:
        # If the next step went to the end of the line, each run would have waited for all others.
        assert apart[count // 2] < count / 5, apart[count // 2]
        assert apart[-1] < count / 3, apart[-1]


@pytest.mark.parametrize(
    ("where", "steps"),
    [
        # Its result had not reached the supervisor: the first step runs again.
        ("end of first", [("first", 1, "lost"), ("first", 2, "succeeded"), ("last", 1, "succeeded")]),
        # It was handed over and claimed again, and then the supervisor died: only the second step runs again.
        ("begin of last", [("first", 1, "succeeded"), ("last", 1, "lost"), ("last", 2, "succeeded")]),
    ],
)
def test_a_supervisor_that_is_killed_between_two_steps(
    bind: Bind,
    connection: Connection,
    start_supervisor: Start,
    tmp_path: Path,
    where: str,
    steps: list[tuple[str, int, str]],
) -> None:
    bind(staying.app)
    run = staying.dying.enqueue(where)
    killed = start_supervisor("staying", "--procs", "1", env={FOLDER: str(tmp_path)})
    assert killed.wait() == -signal.SIGKILL
    start_supervisor("staying", "--procs", "1", env={FOLDER: str(tmp_path)})
    assert run.wait(30) is Status.SUCCEEDED
    assert [(attempt.step, attempt.number, attempt.outcome) for attempt in run.attempts()] == steps
    times = {name: (tmp_path / name).read_text().count("once") for name in ("first", "last")}
    assert times == {"first": 2 if where == "end of first" else 1, "last": 1}
    # The crash counts for the step that was running; a new step starts at zero.
    crashes = connection.execute("select crashes, releases from underway.finished_run").fetchall()
    assert crashes == [(0 if where == "end of first" else 1, 0)]


def test_a_supervisor_that_is_killed_under_many_runs_of_two_steps(
    bind: Bind, connection: Connection, start_supervisor: Start
) -> None:
    """Each step succeeds exactly once, whether its run was at the first step, at the second, or in between."""
    bind(staying.app)
    count = 400
    staying.pairs.enqueue_many([0.002] * count)
    finished = "select count(*) from underway.finished_run"
    for part in (3, 2):
        supervisor = start_supervisor("staying", "--procs", "2")
        eventually(lambda part=part: connection.execute(finished).fetchone()[0] >= count // part - 70)  # type: ignore
        supervisor.process.kill()
        supervisor.process.wait()
    assert 0 < connection.execute(finished).fetchone()[0] < count  # type: ignore[index]
    start_supervisor("staying", "--procs", "2")
    eventually(lambda: states(connection) == {"succeeded": count}, within=60)
    rows = connection.execute(
        "select run_id, step, count(*) from underway.attempt where outcome = 'succeeded' group by run_id, step"
    ).fetchall()
    assert len(rows) == 2 * count
    assert {number for _, _, number in rows} == {1}
    assert outcomes(connection).keys() <= {"succeeded", "lost"}


def test_a_run_whose_step_ends_during_a_drain_is_free_for_other_supervisors(
    bind: Bind, connection: Connection, start_supervisor: Start, tmp_path: Path
) -> None:
    """If the draining supervisor claimed the next step, only the end of its lease of a minute would free the run."""
    bind(staying.app)
    runs = [staying.told.enqueue(name) for name in ("one", "two")]
    supervisor = start_supervisor("staying", "--procs", "2", env={FOLDER: str(tmp_path)})
    eventually(lambda: all((tmp_path / f"{name} began").exists() for name in ("one", "two")))
    supervisor.send(signal.SIGTERM)
    supervisor.until("SIGTERM: finishing what runs")
    (tmp_path / "one").touch()
    eventually(lambda: outcomes(connection) == {"succeeded": 1})
    (tmp_path / "two").touch()
    assert supervisor.wait() == 0
    assert states(connection) == {"pending": 2}
    assert counters(connection) == {(0, 0)}
    for run in runs:
        assert [(attempt.step, attempt.outcome) for attempt in run.attempts()] == [("until_told", "succeeded")]
    start_supervisor("staying", "--procs", "1", env={FOLDER: str(tmp_path)})
    assert [run.result(20) for run in runs] == ["one", "two"]


def test_a_busy_supervisor_that_stops_leaves_nothing_in_progress(
    bind: Bind, connection: Connection, start_supervisor: Start
) -> None:
    bind(staying.app)
    count = 600
    staying.pairs.enqueue_many([0.002] * count)
    for turn in range(2):
        supervisor = start_supervisor("staying", "--procs", "2")
        eventually(lambda turn=turn: outcomes(connection).get("succeeded", 0) > 100 + turn * 200)  # type: ignore[misc]
        supervisor.send(signal.SIGTERM)
        assert supervisor.wait() == 0
        assert states(connection).keys() <= {"pending", "succeeded"}, supervisor.log[-2000:]
        assert counters(connection) == {(0, 0)}
    assert states(connection)["pending"] > 0
    start_supervisor("staying", "--procs", "2")
    eventually(lambda: states(connection) == {"succeeded": count}, within=60)
    assert outcomes(connection) == {"succeeded": 2 * count}


def test_a_run_continues_where_its_next_queue_is_served(
    bind: Bind, connection: Connection, start_supervisor: Start
) -> None:
    """Two versions of an app: both serve the first step, and each has a different queue for the second."""
    bind(staying.app)
    count = 40
    old = start_supervisor("staying", "--procs", "1", env={"STAYING_QUEUE": "old"})
    new = start_supervisor("staying", "--procs", "1", env={"STAYING_QUEUE": "new"})
    for supervisor in (old, new):
        supervisor.until("serving")
    staying.split.enqueue_many([0.02] * count)
    eventually(lambda: states(connection) == {"succeeded": count}, within=60)
    workers = {name: {worker.pid for worker in it.workers()} for name, it in (("old", old), ("new", new))}
    rows = connection.execute(
        "select f.queue, array_agg(a.pid order by a.token), array_agg(a.step order by a.token)"
        " from underway.finished_run f join underway.attempt a on a.run_id = f.id group by f.id"
    ).fetchall()
    assert len(rows) == count
    assert {queue for queue, _, _ in rows} == {"old", "new"}
    for queue, pids, steps in rows:
        assert steps == ["here", "there"]
        assert set(pids) <= workers[queue]
    # A run in a queue that is no longer served stays there.
    old.send(signal.SIGTERM)
    assert old.wait() == 0
    connection.execute(
        "insert into underway.run (id, job, step, queue, keep, due_at, rank, state, input)"
        " values (gen_random_uuid(), 'split', 'there', 'old', '1 day', now(), now(), 'pending', '0')"
    )
    last = staying.split.enqueue(0.0)
    assert last.wait(20) is Status.SUCCEEDED
    assert states(connection) == {"succeeded": count + 1, "pending": 1}
