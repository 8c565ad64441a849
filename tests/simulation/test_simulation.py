"""The parts of a supervisor on a simulated clock, database and worker pool: hundreds of thousands of orderings.

The checks are in tests/simulation: ledger.py (at each write, and at the end), executions.py (whenever a step
starts), supervisor.py (between any two turns of the loop), worker.py (at each assignment), schedules.py.
A failure prints the command that repeats it: PYTHONPATH=tests python -m simulation SEED TURNS.
"""

import os
from collections.abc import Callable
from inspect import signature
from typing import Any

import pytest

from simulation.simulate import simulate, simulate_slow_line
from simulation.store import FakeStore
from underway.definition.manifest import Lane
from underway.postgres.reconnecting import STATEMENT_SECONDS
from underway.postgres.supervisor_store import Store
from underway.supervisor.loops.adaptive_batch import AdaptiveBatch
from underway.supervisor.loops.commit import CommitLoop
from underway.supervisor.loops.commit_queue import CommitQueue
from underway.supervisor.tasks.dispatch import Dispatch
from underway.supervisor.tasks.held import HeldTasks
from underway.supervisor.tasks.results import ResultHandler
from underway.supervisor.tasks.state import TaskState
from underway.supervisor.tasks.task import Task
from underway.supervisor.workers.process import WorkerProcess
from underway.wire import messages

SEED = int(os.environ.get("CHAOS_SEED", "1848"))
TURNS = 4_000
MANY_TURNS = 20_000
MANY_SEEDS = 60


@pytest.mark.parametrize("seed", range(1, 13))
def test_promises_hold_in_every_order(seed: int) -> None:
    world = simulate(seed, TURNS)
    assert len(world.database.ledger.finished) > 50


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_promises_hold_in_many_orders() -> None:
    for seed in range(SEED * 1000, SEED * 1000 + MANY_SEEDS):
        simulate(seed, MANY_TURNS)


def test_the_same_seed_gives_the_same_history() -> None:
    first, again = (simulate(3, 1000) for _ in range(2))
    assert list(first.loop.trace) == list(again.loop.trace)
    assert first.database.ledger.attempts == again.database.ledger.attempts
    assert first.loop.turns == again.loop.turns


def test_the_fake_store_has_the_signatures_of_the_real_one() -> None:
    for name, asked in vars(Store).items():
        if callable(asked) and not name.startswith("_"):
            assert signature(getattr(FakeStore, name)) == signature(asked), name


@pytest.mark.parametrize("seed", range(1, 4))
def test_all_runs_finish_on_a_slow_network(seed: int) -> None:
    simulate_slow_line(seed)


# Each of these mutants breaks a promise, and the simulation must detect it.


def forget_to_requeue_revoked_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    def take_back(self: Dispatch, worker: WorkerProcess) -> list[Task]:
        taken = [task for task in worker.tasks.values() if task.started_at is None]
        for task in taken:
            del worker.tasks[task.token]
        return [task for task in taken if self._held.requeue(task)]

    monkeypatch.setattr(Dispatch, "take_back", take_back)


def forget_skipped_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dispatch, "skipped", lambda self, worker, token: worker.tasks.pop(token, None))


def look_before_revoking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that is found unstarted may have started when the Revoke arrives."""
    real = Dispatch.take_back

    def take_back(self: Dispatch, worker: WorkerProcess) -> list[Task]:
        worker.drain, drain = lambda: None, worker.drain  # type: ignore[method-assign]
        try:
            return real(self, worker)
        finally:
            worker.drain = drain  # type: ignore[method-assign]

    monkeypatch.setattr(Dispatch, "take_back", take_back)


def submit_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ResultHandler._ended

    def ended(self: ResultHandler, worker: WorkerProcess, result: messages.Result) -> None:
        task = worker.tasks.get(result.token)
        real(self, worker, result)
        if task is not None and task.token in self._held:
            task.state = TaskState.STARTED
            worker.tasks[task.token] = task
            real(self, worker, result)

    monkeypatch.setattr(ResultHandler, "_ended", ended)


def hand_to_any_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def next_for(self: Dispatch, worker: WorkerProcess, count: int) -> list[Task]:
        return [self.ready.popleft() for _ in range(min(count, len(self.ready)))]

    monkeypatch.setattr(Dispatch, "_next_for", next_for)
    monkeypatch.setattr(
        Dispatch,
        "_hand",
        lambda self, worker, tasks, real=Dispatch._hand: real(
            self, _with_lanes(worker, {**{task.lane: task.step for task in tasks}, **worker.lanes}), tasks
        ),
    )


def _with_lanes(worker: WorkerProcess, lanes: dict[Lane, Any]) -> WorkerProcess:
    worker.lanes = lanes
    return worker


def take_many_suspects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HeldTasks, "has_suspect", lambda self: False)


def never_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CommitLoop, "full", lambda self: False)


def drop_repeated_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CommitQueue, "put_back", lambda self, group: None)


def release_started_tasks_of_dead_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Release all tasks of a dead worker as unstarted, also the one that it had started."""

    def died(self: ResultHandler, worker: WorkerProcess) -> None:
        tasks, worker.tasks = list(worker.tasks.values()), {}
        for task in tasks:
            if self._held.requeue(task):
                self._dispatch.add([task])

    monkeypatch.setattr(ResultHandler, "died", died)


def judge_deaths_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the death of a worker by a TERM that was sent to its supervisor too, and that is seen first."""
    monkeypatch.setattr(ResultHandler, "_judge_in_time", ResultHandler._judge)


QUICK = [judge_deaths_at_once, forget_to_requeue_revoked_tasks, submit_twice, release_started_tasks_of_dead_workers]
SLOW = [
    forget_skipped_tasks,
    look_before_revoking,
    hand_to_any_worker,
    take_many_suspects,
    never_pause,
    drop_repeated_results,
]
MUTANTS = [*QUICK, *(pytest.param(mutate, marks=pytest.mark.chaos) for mutate in SLOW)]


def _name(mutate: Callable[[pytest.MonkeyPatch], None]) -> str:
    return mutate.__name__


@pytest.mark.parametrize("mutate", MUTANTS, ids=_name)
def test_a_broken_promise_is_detected(
    mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    with pytest.raises(AssertionError, match="python -m simulation"):
        _simulate_many()


def repeat_interrupted_statements_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AdaptiveBatch, "_shrink", lambda self, rows, size, divisor: None)


def give_a_single_row_no_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        AdaptiveBatch, "seconds", property(lambda self: STATEMENT_SECONDS, lambda self, seconds: None), raising=False
    )


@pytest.mark.parametrize("mutate", [repeat_interrupted_statements_unchanged, give_a_single_row_no_more_time], ids=_name)
def test_a_livelock_on_a_slow_network_is_detected(
    mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    with pytest.raises(AssertionError, match="are stuck"):
        simulate_slow_line(1)


def _simulate_many() -> None:
    for seed in range(1, 100):
        simulate(seed, TURNS)
