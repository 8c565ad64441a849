"""`state=`: created once per worker and job, at the first task, within the limits of that task."""

from collections.abc import Callable
from pathlib import Path
from typing import Never

import pytest
from apps import coroutines
from harness import Supervisor

from underway import Job, Status, Underway

Start = Callable[..., Supervisor]


@pytest.fixture
def start(bind: Callable[[Underway], Underway], start_supervisor: Start, tmp_path: Path) -> Start:
    """Start a supervisor for apps/coroutines.py, whose steps write files to tmp_path."""
    bind(coroutines.app)
    return lambda *options: start_supervisor("coroutines", *options, env={"FOLDER": str(tmp_path)})


@pytest.mark.parametrize("job", [coroutines.counting, coroutines.counting_async], ids=lambda job: job.name)
def test_a_state_is_created_once_in_each_worker_and_kept(
    start: Start, job: Job[int, Never, list[int], coroutines.Opened]
) -> None:
    start("--procs", "2")
    runs = job.enqueue_many(range(30))
    results = [run.result(20) for run in runs]
    by_worker: dict[int, list[int]] = {}
    for run, (calls, _, _) in zip(runs, results, strict=True):
        first, _ = run.attempts()
        assert first.pid is not None
        by_worker.setdefault(first.pid, []).append(calls)
    # each worker has counted its own steps, without a restart of the count
    for counted in by_worker.values():
        assert sorted(counted) == list(range(1, len(counted) + 1))


def test_tasks_started_by_an_async_factory_survive(start: Start) -> None:
    start("--procs", "1")
    for _ in range(2):
        _, ticks, _ = coroutines.counting_async.enqueue(0).result(20)
        assert ticks > 0


def test_a_job_without_a_factory_has_no_state(start: Start) -> None:
    start("--procs", "1")
    assert coroutines.without_state.enqueue().result(20) is True


def test_a_factory_that_raises_fails_the_attempt_and_is_called_again(start: Start) -> None:
    start("--procs", "1")
    run = coroutines.failing_state.enqueue()
    assert run.result(20) == 42
    failed, succeeded = run.attempts()
    assert (failed.outcome, succeeded.outcome) == ("failed", "succeeded")
    assert (
        (failed.error or "")
        .rstrip()
        .endswith("StateFailed: state=fails_at_first of job 'failing-state' raised LookupError: no model")
    )


def test_a_factory_is_interrupted_at_the_timeout_of_its_step(start: Start) -> None:
    start("--procs", "1")
    run = coroutines.slow_state.enqueue()
    assert run.wait(20) is Status.FAILED
    assert [attempt.outcome for attempt in run.attempts()] == ["timed_out"]
