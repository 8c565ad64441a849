"""From step to step with real supervisors: in line, killed in between, told to stop in between, and side by side."""

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
    """Which steps of which runs were executed, in the order of their beginnings."""
    return connection.execute("select run_id::text, step from underway.attempt order by started_at").fetchall()


def counters(connection: Connection) -> set[tuple[int, int]]:
    """The attempts and crashes that anybody is charged with."""
    query = "select attempts, crashes from underway.run union select attempts, crashes from underway.finished_run"
    return set(connection.execute(query).fetchall())


@pytest.mark.parametrize(("seconds", "count"), [(0.0, 10_000), (0.01, 300), (0.1, 40)], ids=["no-ops", "short", "long"])
def test_the_steps_of_a_run_follow_each_other(
    bind: Bind, connection: Connection, start_supervisor: Start, seconds: float, count: int
) -> None:
    """One worker and many runs: what was begun is finished first, but for what the worker had in its hands already."""
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
        # While one's first step is committed the worker begins another, and that is all.
        assert apart[count // 2] <= 2, apart
        # A claim beside the commit may take the place, and then what is claimed ahead comes first.
        assert apart[-1] <= 15, apart
    else:
        # Far from once around: without a place in line each would have waited for all others.
        assert apart[count // 2] < count / 5, apart[count // 2]
        assert apart[-1] < count / 3, apart[-1]


@pytest.mark.parametrize(
    ("where", "steps"),
    [
        # Its result was in nobody's hands yet: the first step is run again.
        ("end of first", [("first", 1, "lost"), ("first", 2, "succeeded"), ("last", 1, "succeeded")]),
        # Handed over and kept, and the supervisor is gone: only the second is.
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
    # The crash is that of the step that was running; a new step begins without it.
    crashes = connection.execute("select crashes, releases from underway.finished_run").fetchall()
    assert crashes == [(0 if where == "end of first" else 1, 0)]


def test_a_supervisor_that_is_killed_under_many_runs_of_two_steps(
    bind: Bind, connection: Connection, start_supervisor: Start
) -> None:
    """Whatever it held at that moment, at a first step, at a second, or on the way: each step succeeds exactly once."""
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


def test_a_step_that_ends_while_its_supervisor_drains_does_not_take_its_run_along(
    bind: Bind, connection: Connection, start_supervisor: Start, tmp_path: Path
) -> None:
    """Its lease is a minute: were the next step kept, only its lapse would free it."""
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


def test_a_supervisor_told_to_stop_in_full_swing_leaves_nothing_in_progress(
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


def test_a_run_goes_on_where_its_next_queue_is_served(
    bind: Bind, connection: Connection, start_supervisor: Start
) -> None:
    """Two generations of one app: both serve the first step, each has another queue for the second."""
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
    # One that waits for a queue that nobody serves any more is left alone, whoever has begun it.
    old.send(signal.SIGTERM)
    assert old.wait() == 0
    connection.execute(
        "insert into underway.run (id, job, step, queue, keep, due_at, rank, state, input)"
        " values (gen_random_uuid(), 'split', 'there', 'old', '1 day', now(), now(), 'pending', '0')"
    )
    last = staying.split.enqueue(0.0)
    assert last.wait(20) is Status.SUCCEEDED
    assert states(connection) == {"succeeded": count + 1, "pending": 1}
