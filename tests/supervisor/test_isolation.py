"""A step's changes to its process never reach the next run: they are undone, or the worker is replaced."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Never

import psycopg
import pytest
from apps import leaving
from harness import Supervisor, outcomes, states

from underway import Job, Underway

Start = Callable[..., Supervisor]
Looks = Job[None, Never, dict[str, str]]


@pytest.fixture
def start(bind: Callable[[Underway], Underway], start_supervisor: Start, stage: Path) -> Start:
    """Start a supervisor for apps/leaving.py with one worker."""
    bind(leaving.app)
    return lambda *options: start_supervisor("leaving", "--procs", "1", *options, env={"STAGE": str(stage)})


def test_each_task_finds_the_original_process_state(start: Start) -> None:
    start()
    before = leaving.looks.enqueue().result(20)
    assert before["third"] == "41152.26"
    for what in leaving.RESTORED:
        assert str(leaving.leaves.enqueue(what).result(20)) == before["pid"]
        assert leaving.looks.enqueue().result(20) == before, what


@pytest.mark.parametrize("leaves", [leaving.leaves, leaving.leaves_async], ids=lambda job: job.name)
@pytest.mark.parametrize("looks", [leaving.looks, leaving.looks_async], ids=lambda job: job.name)
def test_the_process_state_is_restored_after_short_tasks_too(
    start: Start, leaves: Job[str, Any, int], looks: Looks
) -> None:
    before = looks.enqueue()
    found = []
    for what in leaving.SHORT * 20:
        leaves.enqueue(what)
        found.append((what, looks.enqueue()))
    assert start("--until-idle").wait() == 0
    for what, run in found:
        assert run.result() == before.result(), what


def test_context_variables_set_by_a_state_factory_do_not_reach_steps(start: Start) -> None:
    start()
    before = leaving.looks.enqueue().result(20)
    for job in (leaving.looks_with_state, leaving.looks_with_async_state):
        for _ in range(2):
            assert job.enqueue().result(20) == before


@pytest.mark.parametrize("how", ["closed_streams", "detached_streams"])
def test_streams_that_a_step_has_closed_are_opened_again(start: Start, how: str) -> None:
    supervisor = start()
    worker = leaving.leaves.enqueue(how).result(20)
    leaving.speaks.enqueue("heard").result(20)
    supervisor.until("INFO    heard")
    assert leaving.looks.enqueue().result(20)["pid"] == str(worker)
    assert supervisor.log.count("INFO    heard") == 2


def test_a_worker_that_cannot_be_restored_runs_no_more_tasks(start: Start, connection: psycopg.Connection[Any]) -> None:
    before = leaving.writes.enqueue_many(range(200))  # short, so several are pipelined
    spoiling = leaving.writes.enqueue(-1)
    behind = leaving.writes.enqueue_many(range(200))
    supervisor = start("--until-idle")
    assert supervisor.wait() == 0
    assert states(connection) == outcomes(connection) == {"succeeded": 401}
    spoilt = spoiling.result()
    assert {run.result() for run in before} == {spoilt}
    pids = {run.result() for run in behind}
    assert len(pids) == 1
    assert pids != {spoilt}
    assert "worker replaced: a step has lowered RLIMIT_FSIZE, which cannot be undone" in supervisor.log


def test_each_worker_is_replaced_if_every_run_taints_it(start: Start, connection: psycopg.Connection[Any]) -> None:
    runs = leaving.writes.enqueue_many([-1] * 6)
    supervisor = start("--until-idle")
    assert supervisor.wait(60) == 0
    assert outcomes(connection) == {"succeeded": 6}
    assert len({run.result() for run in runs}) == 6
    assert supervisor.log.count("worker replaced: a step has lowered RLIMIT_FSIZE") >= 5
