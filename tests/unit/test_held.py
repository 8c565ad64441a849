"""Every event in every state of a task: legal transitions, and an exception for all others."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from underway.definition.manifest import Lane, Step
from underway.supervisor.loops.loop import Loop
from underway.supervisor.signals import Signal, Signals
from underway.supervisor.tasks.held import HeldTasks
from underway.supervisor.tasks.state import Event, IllegalTransition, TaskState
from underway.supervisor.tasks.task import Task

WORKER: Any = object()
EVENTS: dict[Event, Callable[[HeldTasks, Task], object]] = {
    Event.HAND: lambda held, task: held.hand(task, WORKER),
    Event.REVOKE: HeldTasks.revoke,
    Event.START: lambda held, task: held.start(task, 7.0),
    Event.REQUEUE: HeldTasks.requeue,
    Event.DIE: HeldTasks.die,
    Event.END: HeldTasks.end,
    Event.COMMIT: HeldTasks.commit,
    Event.LOSE: HeldTasks.lose,
    Event.ABANDON: HeldTasks.abandon,
}
# A row per event, a column per state; "." is illegal.
TABLE = """
         WAITING HANDED   REVOKING STARTED   UNJUDGED ENDED     COMMITTED LOST ABANDONED
hand     HANDED  .        .        .         .        .         .         .    .
revoke   .       REVOKING .        .         .        .         .         .    .
start    .       STARTED  STARTED  STARTED   .        .         .         LOST .
requeue  .       WAITING  WAITING  WAITING   .        .         .         LOST .
die      .       .        .        UNJUDGED  .        .         .         LOST .
end      ENDED   ENDED    ENDED    ENDED     ENDED    ENDED     .         .    .
commit   .       .        .        .         .        COMMITTED .         .    .
lose     LOST    LOST     LOST     LOST      LOST     LOST      .         .    .
abandon  .       .        .        .         .        ABANDONED .         .    .
"""
STATES, *ROWS = [line.split() for line in TABLE.strip().splitlines()]
CELLS = [
    (Event(event), TaskState[state], after) for event, *row in ROWS for state, after in zip(STATES, row, strict=True)
]
GONE = (TaskState.COMMITTED, TaskState.LOST, TaskState.ABANDONED)


def task(token: int = 1, *, state: TaskState = TaskState.WAITING, **more: Any) -> Task:
    lane, step = Lane("queue", "job", "step"), Step("step")
    given = {"number": 0, "attempts": 0, "crashes": 0, "releases": 0, "input": b"", "lease_deadline": 60.0, **more}
    made = Task(f"run {token}", token, lane, step, claimed_at=0.0, **given)
    made.state = state
    return made


def holding(*tasks: Task) -> HeldTasks:
    held = HeldTasks()
    held.add(tasks)
    return held


def test_the_table_is_complete() -> None:
    assert {event for event, _, _ in CELLS} == set(Event) == set(EVENTS)
    assert {state for _, state, _ in CELLS} == set(TaskState)


@pytest.mark.parametrize(("event", "before", "after"), CELLS)
def test_each_event_in_each_state(event: Event, before: TaskState, after: str) -> None:
    one = task(state=before)
    held = holding() if before in GONE else holding(one)
    if after == ".":
        with pytest.raises(IllegalTransition, match=f"{event} of a task that is {before.name}: run run 1, token 1"):
            EVENTS[event](held, one)
        assert one.state is before
        assert (1 in held) is (before not in GONE)
    else:
        EVENTS[event](held, one)
        assert one.state is TaskState[after]
        assert (1 in held) is (one.state not in GONE)


def test_a_task_knows_its_worker_while_it_has_one() -> None:
    one = task(stop_sent_at=1.0, stop_reason="timeout")
    held = holding(one)
    held.hand(one, WORKER)
    held.start(one, 7.0)
    assert (one.worker, one.started_at) == (WORKER, 7.0)
    assert held.requeue(one)
    assert (one.worker, one.started_at, one.stop_sent_at, one.stop_reason) == (None, None, None, None)


def test_a_lost_task_does_not_wait_again() -> None:
    one = task()
    held = holding(one)
    held.hand(one, WORKER)
    held.lose(one)
    assert not held.requeue(one)


def test_a_death_keeps_the_start_time_for_the_verdict() -> None:
    one = task()
    held = holding(one)
    held.hand(one, WORKER)
    held.start(one, 7.0)
    held.die(one)
    assert (one.worker, one.started_at) == (None, 7.0)


def test_the_queries_of_the_loops() -> None:
    plain, suspect = task(1), task(2, crashes=1, progress=b"1")
    in_transaction = task(3, transaction=True, progress=b"1", lease_deadline=100.0)
    held = holding(plain, suspect, in_transaction)
    assert (len(held), list(held), held.tokens()) == (3, [plain, suspect, in_transaction], {1, 2, 3})
    assert held.runs() == {"run 1", "run 2", "run 3"}
    assert held.has_run("run 2")
    assert not held.has_run("run 4")
    assert held.has_suspect()
    assert held.with_progress() == [suspect]
    assert held.to_renew(100.0 - plain.lease_seconds) == [plain, suspect], "its row is not touched while there is time"
    assert held.to_renew(100.0) == [plain, suspect, in_transaction]
    held.lose(suspect)
    assert not held.has_suspect()
    assert held.get(2) is None


# Loops and signals


def test_a_signal_calls_its_listeners_in_order() -> None:
    heard: list[tuple[str, float]] = []
    signal: Signal[[float]] = Signal()
    signal(1.0)
    signal.connect(lambda delay: heard.append(("first", delay)), lambda delay: heard.append(("second", delay)))
    signal(2.0)
    assert heard == [("first", 2.0), ("second", 2.0)]


def test_a_run_with_a_delay_is_due_later() -> None:
    signals, heard = Signals(), list[float]()
    signals.run_pending.connect(lambda: heard.append(0.0))
    signals.run_due_in.connect(heard.append)
    for delay in (0.0, 1.5):
        signals.run_placed(delay)
    assert heard == [0.0, 1.5]


class Turns(Loop):
    """Each turn runs the next function of the test, and pauses for an hour."""

    def __init__(self, *acts: Callable[["Turns"], float]) -> None:
        super().__init__("turning")
        self.acts = list(acts)

    async def turn(self) -> float:
        if not self.acts:
            self._stopping = True
            return 0.0
        return self.acts.pop(0)(self)


def run(loop: Loop) -> float:
    """Run the loop to its end. Returns how long that took."""
    began = time.monotonic()
    asyncio.run(asyncio.wait_for(loop.run(), 10))
    return time.monotonic() - began


def test_a_wake_up_during_a_turn_counts() -> None:
    def wake(loop: Turns) -> float:
        loop.wake()
        return 3600.0

    run(Turns(wake))


def test_the_earlier_of_two_wake_ups_counts() -> None:
    def wake(loop: Turns) -> float:
        asyncio.get_running_loop().call_later(0.01, loop.wake, 0.02)
        asyncio.get_running_loop().call_later(0.01, loop.wake, 3600.0)
        return 3600.0

    assert run(Turns(wake)) > 0.02
