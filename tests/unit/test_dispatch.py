"""Which worker gets which task: pure logic, on stub workers."""

import random
import time
from typing import Any

import pytest
from rosters import roster_of

from underway.definition.manifest import Lane, Step
from underway.guardian import lease_clock
from underway.supervisor.shutdown import StopRequest
from underway.supervisor.signals import Signals
from underway.supervisor.tasks.dispatch import MOST_CLAIMED, PATIENCE_SECONDS, STALE_SECONDS, Dispatch
from underway.supervisor.tasks.held import HeldTasks
from underway.supervisor.tasks.pipeline import MOST_PIPELINED, PIPELINE_BYTES, PIPELINE_SECONDS, SHORT_SECONDS
from underway.supervisor.tasks.prefetch import MOST_PREFETCHED, PREFETCH_BYTES, PREFETCH_SECONDS
from underway.supervisor.tasks.results import ResultHandler
from underway.supervisor.tasks.task import Task
from underway.supervisor.tasks.verdict import Observation
from underway.supervisor.workers.limits import LEASE_MARGIN, Limits
from underway.supervisor.workers.process import WorkerProcess
from underway.wire import messages as wire

LANE = Lane("queue", "job", "step")
OTHER = Lane("queue", "job", "other")


class StubWorker:
    """A worker process as Dispatch sees it: what it was sent, and a socket that may be full."""

    def __init__(self, *lanes: Lane) -> None:
        self.lanes = {lane: Step("step now") for lane in lanes or (LANE, OTHER)}
        self.tasks: dict[int, Task] = {}
        self.revoked: set[int] = set()
        self.ready = True
        self.most_pipelined = 1_000
        self.reads = True
        self.sent: list[wire.Message] = []
        self.starts_when_drained: list[int] = []

    @property
    def current(self) -> Task | None:
        return WorkerProcess.current.fget(self)  # type: ignore[attr-defined, no-any-return]

    def send(self, *messages: wire.Message) -> bool:
        self.sent += messages
        return self.reads

    def drain(self) -> None:
        """Receive the Started of these tasks."""
        for token in self.starts_when_drained:
            self.tasks[token].started_at = time.monotonic()

    def start(self, *, ago: float = 0.0) -> Task:
        task = next(iter(self.tasks.values()))
        task.started_at = time.monotonic() - ago
        return task

    def finish(self) -> None:
        del self.tasks[next(iter(self.tasks))]

    @property
    def tokens(self) -> list[int]:
        return list(self.tasks)


class StubGuardian:
    def __init__(self) -> None:
        self.deadlines: list[float] = []

    def expect_word_by(self, expires_at: float) -> None:
        self.deadlines.append(expires_at)


class StubPool:
    def __init__(self, *workers: StubWorker) -> None:
        self.guardian = StubGuardian()
        self.roster = roster_of(workers)


def on(*workers: StubWorker) -> Dispatch:
    crew: Any = StubPool(*workers)
    return Dispatch(crew, HeldTasks())


def task(token: int, *, lane: Lane = LANE, crashes: int = 0, age: float = 0.0, lease: float = 60.0) -> Task:
    now = time.monotonic()
    return Task(
        run=f"run {token}",
        token=token,
        lane=lane,
        step=Step("step now"),
        number=2,
        attempts=0,
        crashes=crashes,
        releases=0,
        input=b"input",
        claimed_at=now - age,
        lease_deadline=lease_clock.now() - age + lease,
    )


def tasks(count: int, **options: Any) -> list[Task]:
    return [task(token, **options) for token in range(1, count + 1)]


def results_of(line: Dispatch) -> ResultHandler:
    nothing: Any = None
    return ResultHandler(line, nothing, nothing, line._held, nothing, StopRequest(), Signals(), rng=random.Random(1))


def learn(line: Dispatch, seconds: float, lane: Lane = LANE) -> None:
    line.record_duration(lane, seconds)


# Assigning


def test_each_idle_worker_gets_one_task_in_order() -> None:
    workers = [StubWorker() for _ in range(3)]
    line = on(*workers)
    line.add(tasks(5))
    line.pump()
    assert [worker.tokens for worker in workers] == [[1], [2], [3]]
    assert [waiting.token for waiting in line.ready] == [4, 5]
    (sent,) = workers[0].sent
    assert sent == wire.Assignment("run 1", 1, "job", "step now", 3, 0, 0, 900.0, None, b"input")
    assert workers[0].tasks[1].worker is workers[0]  # type: ignore[comparison-overlap]
    line.pump()
    assert [worker.tokens for worker in workers] == [[1], [2], [3]], (
        "their duration is unknown, so nothing is pipelined"
    )


def test_a_worker_that_is_not_ready_gets_nothing() -> None:
    worker = StubWorker()
    worker.ready = False
    line = on(worker)
    line.add(tasks(1))
    line.pump()
    assert worker.tokens == []
    assert len(line.ready) == 1


def test_a_task_goes_only_to_a_worker_whose_manifest_has_it() -> None:
    old, new = StubWorker(LANE), StubWorker(OTHER)
    line = on(old, new)
    line.add([task(1, lane=OTHER), task(2, lane=OTHER), task(3), task(4)])
    line.pump()
    assert (old.tokens, new.tokens) == ([3], [1])
    assert [waiting.token for waiting in line.ready] == [2, 4]
    old.finish()
    line.pump()
    assert old.tokens == [4]


def test_short_tasks_are_pipelined_and_shared() -> None:
    first, second = StubWorker(), StubWorker()
    line = on(first, second)
    learn(line, 0.001)
    line.add(tasks(12))
    line.pump()
    assert len(first.tasks) > 1
    assert len(second.tasks) > 1
    assert abs(len(first.tasks) - len(second.tasks)) <= 2
    assert first.tokens == sorted(first.tokens)
    everything = [*first.tokens, *second.tokens, *(waiting.token for waiting in line.ready)]
    assert sorted(everything) == list(range(1, 13))


@pytest.mark.parametrize(
    ("seconds", "most"),
    [
        (0.0, MOST_PIPELINED),
        (1e-9, MOST_PIPELINED),
        (PIPELINE_SECONDS / 10.5, 11),
        (PIPELINE_SECONDS, 2),
        (SHORT_SECONDS, 2),
        (SHORT_SECONDS * 1.01, 1),
        (60.0, 1),
    ],
)
def test_how_many_are_pipelined_depends_on_their_duration(seconds: float, most: int) -> None:
    worker = StubWorker()
    line = on(worker)
    learn(line, seconds)
    line.add(tasks(500))
    for _ in range(5):
        line.pump()
    assert len(worker.tasks) == most


def test_nothing_is_pipelined_behind_a_long_task() -> None:
    worker = StubWorker()
    line = on(worker)
    learn(line, 0.001)
    line.add([task(1)])
    line.pump()
    worker.start(ago=SHORT_SECONDS + 0.001)
    line.add(tasks(5)[1:])
    line.pump()
    assert worker.tokens == [1]


def test_no_long_task_is_pipelined_behind_a_short_one() -> None:
    worker = StubWorker()
    line = on(worker)
    learn(line, 0.001)
    learn(line, 10.0, OTHER)
    line.add([task(1)])
    line.pump()
    line.add([task(2, lane=OTHER)])
    line.pump()
    assert worker.tokens == [1]


def test_durations_are_learned_for_each_step() -> None:
    line = on(StubWorker())
    learn(line, 0.001)
    for _ in range(30):
        learn(line, 1.0)
    assert line._pipeline._limit(LANE) == 1
    assert line._pipeline._limit(OTHER) == 1, "unknown"
    for _ in range(60):
        learn(line, 0.001)
    assert line._pipeline._limit(LANE) > 1


# Suspects


def test_a_suspect_waits_for_an_idle_worker_and_runs_alone() -> None:
    worker = StubWorker()
    line = on(worker)
    learn(line, 0.001)
    line.add([task(1), task(99, crashes=1), *tasks(9)[1:]])
    assert [suspect.token for suspect in line.suspects] == [99]
    line.pump()
    assert 99 not in worker.tokens or worker.tokens == [99]
    for _ in range(20):
        if worker.tokens == [99]:
            break
        assert 99 not in worker.tokens, "pipelined"
        worker.finish()
        line.pump()
    assert worker.tokens == [99], "the suspect gets its turn"
    line.pump()
    assert worker.tokens == [99], "nothing is pipelined behind it"
    worker.start()
    line.pump()
    assert worker.tokens == [99]


def test_a_suspect_goes_only_to_a_worker_that_knows_its_job() -> None:
    worker = StubWorker(OTHER)
    line = on(worker)
    line.add([task(1, crashes=2), task(2, lane=OTHER)])
    line.pump()
    assert worker.tokens == [2]


# Revoking


def test_unstarted_tasks_are_taken_back() -> None:
    worker = StubWorker()
    line = on(worker)
    learn(line, 0.001)
    line.add(tasks(8))
    line.pump()
    line.pump()
    handed = worker.tokens
    assert len(handed) == 8
    worker.start()
    worker.sent.clear()
    taken = line.take_back(worker)  # type: ignore[arg-type]
    assert [back.token for back in taken] == handed[1:]
    assert worker.sent == [wire.Revoke(token) for token in handed[1:]]
    assert worker.tokens == [1]
    assert worker.revoked == set(handed[1:])
    assert all(back.worker is None for back in taken)
    assert line.take_back(worker) == []  # type: ignore[arg-type]


def test_a_task_that_has_started_meanwhile_stays() -> None:
    worker = StubWorker()
    line = on(worker)
    learn(line, 0.001)
    line.add(tasks(3))
    line.pump()
    line.pump()
    worker.start()
    worker.starts_when_drained = [2]
    assert [back.token for back in line.take_back(worker)] == [3]  # type: ignore[arg-type]
    assert worker.tokens == [1, 2]
    assert worker.revoked == {3}


def test_a_revoked_task_returns_to_its_worker_only_after_its_skipped() -> None:
    # Found by the simulation (seed 18): the Skipped of the first assignment was attributed to the second, and the task
    # was assigned a third time while the worker ran it.
    worker, other = StubWorker(), StubWorker()
    line = on(worker)
    learn(line, 0.001)
    line.add(tasks(2))
    line.pump()
    line.pump()
    assert worker.tokens == [1, 2]
    worker.start()
    line.add_first(line.take_back(worker))  # type: ignore[arg-type]
    worker.finish()
    line.pump()
    assert worker.tokens == [], "its Skipped has not arrived"
    line.skipped(worker, 2)  # type: ignore[arg-type]
    assert [waiting.token for waiting in line.ready] == [2], "it waits only once"
    line.pump()
    assert worker.tokens == [2]
    line.add_first(line.take_back(worker))  # type: ignore[arg-type]
    line._pool.roster.active.append(other)  # type: ignore[arg-type]
    line.pump()
    assert (worker.tokens, other.tokens) == ([], [2]), "another worker can have it at once"


def test_a_lost_task_that_is_skipped_later_does_not_wait_again() -> None:
    # Found by the simulation (seed 18): its worker did not read, so the task could not be taken back when it was lost.
    # It was skipped later and waited here again, although it had a new owner.
    worker = StubWorker()
    line = on(worker)
    learn(line, 0.001)
    line.add(tasks(2))
    line.pump()
    line.pump()
    worker.start()
    line._held.add(worker.tasks.values())
    results = results_of(line)
    worker.reads = False
    results.lose(worker.tasks[2])
    assert worker.tokens == [1, 2]
    results.received(worker, wire.Skipped(2))  # type: ignore[arg-type]
    assert (worker.tokens, list(line.ready)) == ([1], [])


def test_tasks_behind_one_that_has_committed_before_it_was_lost_wait_again() -> None:
    """Found by the simulation: the task had committed through cx.tx, and the tasks behind it were forgotten."""
    worker = StubWorker()
    line = on(worker)
    learn(line, 0.001)
    line.add(tasks(3))
    line.pump()
    line.pump()
    assert worker.tokens == [1, 2, 3]
    line._held.add(worker.tasks.values())
    first = worker.tasks[1]

    def drain() -> None:
        line._held.start(first, 0.0)
        line._held.end(worker.tasks.pop(1))
        line._held.commit(first)

    worker.drain = drain  # type: ignore[method-assign]
    results_of(line).lose(first)
    assert ([task.token for task in line.ready], line._held.tokens()) == ([2, 3], {2, 3})


def test_no_more_is_pipelined_than_a_socket_holds() -> None:
    worker = StubWorker()
    line = on(worker)
    learn(line, PIPELINE_SECONDS / 100)
    waiting = tasks(60)
    for each in waiting:
        each.input = b"x" * (PIPELINE_BYTES // 10)
    line.add(waiting)
    line.pump()
    assert 5 <= len(worker.tasks) <= 10
    worker.start()
    before = len(worker.tasks)
    line.pump()
    assert len(worker.tasks) <= before + 1, "only started tasks have certainly been read"
    # A task that is too large to be pipelined gets an idle worker.
    line.ready[0].input = b"x" * PIPELINE_BYTES
    while len(worker.tasks) > 1:
        worker.finish()
        line.pump()
    worker.finish()
    line.pump()
    assert len(worker.tasks) == 1


def test_nothing_is_taken_back_while_the_worker_does_not_read() -> None:
    worker = StubWorker()
    line = on(worker)
    learn(line, 0.001)
    line.add(tasks(3))
    line.pump()
    line.pump()
    worker.start()
    worker.reads = False
    worker.sent.clear()
    for _ in range(3):
        assert line.take_back(worker) == []  # type: ignore[arg-type]
    assert worker.tokens == [1, 2, 3]
    # (Each try was buffered, and the supervisor's memory grew.)
    assert worker.sent == [wire.Revoke(2), wire.Revoke(3)]
    worker.reads = True
    assert [back.token for back in line.take_back(worker)] == [2, 3]  # type: ignore[arg-type]
    # Assigned again, they can be revoked again.
    for token in (2, 3):
        line.skipped(worker, token)  # type: ignore[arg-type]
    line.add([task(2), task(3)])
    worker.tasks[1].started_at = None
    line.pump()
    worker.start()
    worker.sent.clear()
    assert [back.token for back in line.take_back(worker)] == [2, 3]  # type: ignore[arg-type]
    assert worker.sent == [wire.Revoke(2), wire.Revoke(3)]


def test_tasks_behind_a_long_task_go_to_others_in_their_old_order() -> None:
    slow, other = StubWorker(), StubWorker()
    line = on(slow, other)
    learn(line, 0.001)
    line.add(tasks(6))
    other.ready = False
    line.pump()
    line.pump()
    assert slow.tokens == [1, 2, 3, 4, 5, 6]
    now = time.monotonic()
    line.take_back_waiting(now)
    assert len(slow.tasks) == 6, "it has not started: the worker may still be starting up"
    slow.start()
    line.take_back_waiting(now + PATIENCE_SECONDS / 2)
    assert len(slow.tasks) == 6, "not yet"
    line.add([task(7)])
    line.take_back_waiting(time.monotonic() + PATIENCE_SECONDS + 0.01)
    assert slow.tokens == [1]
    assert [waiting.token for waiting in line.ready] == [2, 3, 4, 5, 6, 7]


def test_under_backpressure_nothing_is_assigned_and_nothing_stays_pipelined() -> None:
    worker, idle = StubWorker(), StubWorker()
    line = on(worker)
    learn(line, 0.001)
    line.add(tasks(6))
    line.pump()
    worker.start()
    first, *behind = worker.tokens
    assert behind
    line.backpressured = True
    line._pool.roster.active.append(idle)  # type: ignore[arg-type]
    line.take_back_waiting(time.monotonic())
    line.pump()
    assert worker.tokens == [first]
    assert idle.tokens == []
    line.backpressured = False
    line.pump()
    assert idle.tokens


def test_a_skipped_task_goes_to_the_front() -> None:
    worker = StubWorker()
    line = on(worker)
    line.add([task(1)])
    line.pump()
    begun = worker.start()
    begun.stop_sent_at, begun.stop_reason = (
        time.monotonic(),
        "timeout",
    )  # the worker was interrupted before it skipped the task
    worker.revoked.add(1)
    line.add([task(2)])
    line.skipped(worker, 1)  # type: ignore[arg-type]
    assert [waiting.token for waiting in line.ready] == [1, 2]
    assert (begun.worker, begun.started_at) == (None, None)
    # Otherwise the next worker would be killed, without an interrupt, for what this one did.
    assert [begun.stop_sent_at, begun.stop_reason] == [None, None]
    assert worker.revoked == set()
    line.skipped(worker, 77)  # type: ignore[arg-type]  # taken back already: only the pending Skipped is to be forgotten
    assert len(line.ready) == 2


def test_a_skipped_suspect_is_still_a_suspect() -> None:
    worker = StubWorker()
    line = on(worker)
    line.add([task(1, crashes=1)])
    line.pump()
    worker.start()
    line.skipped(worker, 1)  # type: ignore[arg-type]
    assert [waiting.token for waiting in line.suspects] == [1]
    assert not line.ready


def test_overdue_tasks_are_released() -> None:
    line = on(StubWorker())
    stale, lapsed, fresh = task(1, age=STALE_SECONDS + 1), task(2, lease=0.0), task(3)
    suspect = task(4, crashes=1, age=STALE_SECONDS + 1)
    line.add([stale, lapsed, fresh, suspect])
    assert {overdue.token for overdue in line.overdue(time.monotonic() + 0.001)} == {1, 2, 4}
    assert [waiting.token for waiting in line.ready] == [3]
    assert not line.suspects
    assert line.overdue(time.monotonic()) == []


def test_less_is_prefetched_after_tasks_were_released_unused() -> None:
    busy = StubWorker()
    line = on(busy)
    learn(line, 0.01)
    line.add(tasks(2))
    line.pump()
    usual = line.free_capacity()
    line.add([task(3, age=2 * STALE_SECONDS)])
    assert line.overdue(time.monotonic())
    assert 0.4 * usual < line.free_capacity() < 0.6 * usual
    for _ in range(20):
        assert not line.overdue(time.monotonic())
    assert line.free_capacity() == usual


def test_dropping_and_taking_all() -> None:
    line = on(StubWorker())
    known = [task(1), task(2), task(3, crashes=1)]
    line.add(known)
    line.drop(known[0])
    line.drop(known[0])
    line.drop(task(9))
    assert {waiting.token for waiting in line.take_all()} == {2, 3}
    assert line.take_all() == []


# Claiming


def test_without_workers_nothing_is_claimed() -> None:
    assert on().demand() == 0
    unready = StubWorker()
    unready.ready = False
    assert on(unready).demand() == 0


def test_idle_workers_ask_for_one_each_at_first() -> None:
    line = on(StubWorker(), StubWorker())
    assert line.demand() == 2
    line.add(tasks(2))
    assert line.demand() == 0
    line.pump()
    assert line.demand() == 0, "both are busy, for an unknown time"


def test_short_tasks_are_prefetched_up_to_a_limit() -> None:
    line = on(StubWorker(), StubWorker())
    learn(line, 0.02)
    assert line.demand() == 2 + 2 * int(PREFETCH_SECONDS / 0.02)
    line = on(StubWorker())
    learn(line, 0.0)
    assert line.free_capacity() == 1 + MOST_PREFETCHED
    line = on(*(StubWorker() for _ in range(40)))
    learn(line, 0.0)
    assert line.demand() == MOST_CLAIMED


def test_long_tasks_are_left_to_others() -> None:
    worker = StubWorker()
    line = on(worker)
    learn(line, 10.0)
    assert line.demand() == 1
    line.add([task(1)])
    line.pump()
    worker.start(ago=1.0)
    assert line.demand() == 0


def test_prefetch_is_limited_by_the_size_of_recent_inputs() -> None:
    line = on(StubWorker())
    learn(line, 0.0)
    large = tasks(100)
    for one in large:
        one.input = bytes(PREFETCH_BYTES // 8)
    line.add(large)
    for one in large:
        line.drop(one)
    assert 1 + 8 <= line.demand() <= 1 + 9
    # An input that exceeds the limit is claimed alone, for an idle worker.
    for one in large:
        one.input = bytes(3 * PREFETCH_BYTES)
    line.add(large)
    line.take_all()
    assert line.demand() == 1


def test_waiting_inputs_are_bounded_in_bytes() -> None:
    workers = [StubWorker(), StubWorker()]
    line = on(*workers)
    learn(line, 0.0)
    line.add(tasks(1000))
    for worker in workers:
        line.pump()
        worker.start()
    line.take_all()
    assert line.demand() > 500, "after many small inputs"
    assert line.room() == 2 * PREFETCH_BYTES
    large = tasks(2)
    for one in large:
        one.input = bytes(PREFETCH_BYTES)
    line.add(large)
    assert line.room() == 0
    assert line.demand() == 0
    assert line.free_capacity() <= 0
    line.take_all()
    line.add(large[:1])
    assert line.room() == PREFETCH_BYTES


def test_every_idle_worker_gets_a_task_beside_large_waiting_ones() -> None:
    line = on(*(StubWorker() for _ in range(4)))
    huge = task(1)
    huge.input = bytes(5 * PREFETCH_BYTES)
    line.add([huge])
    assert line.room() == 0
    assert line.demand() == line.free_capacity() == 3


def test_next_steps_of_runs_that_stay_go_first_in_their_order() -> None:
    worker = StubWorker()
    line = on(worker)
    first, second, *others = tasks(5)
    line.add(others)
    line.add_first([first, second])
    assert [one.token for one in line.ready] == [1, 2, 3, 4, 5]
    line.pump()
    assert worker.tokens == [1]


def test_a_small_demand_does_not_cause_a_claim_while_there_is_work() -> None:
    worker = StubWorker()
    line = on(worker)
    learn(line, 0.01)
    line.add(tasks(int(PREFETCH_SECONDS / 0.01) + 5))
    line.pump()
    worker.start()
    before = len(line.ready)
    assert line.demand() == 0
    while line.demand() == 0:
        line.ready.popleft()
    assert len(line.ready) <= before * 0.6


def test_nothing_is_prefetched_for_a_worker_with_a_long_task_or_a_suspect() -> None:
    worker = StubWorker()
    line = on(worker)
    learn(line, 0.001)
    line.add([task(1)])
    line.pump()
    worker.start()
    assert line.demand() > 0
    worker.start(ago=PREFETCH_SECONDS + 0.01)
    assert line.demand() == 0
    suspicious = StubWorker()
    line = on(suspicious)
    learn(line, 0.001)
    line.add([task(1, crashes=1)])
    line.pump()
    suspicious.start()
    assert line.demand() == 0


def test_the_limits_are_consistent() -> None:
    assert PIPELINE_SECONDS < SHORT_SECONDS <= PATIENCE_SECONDS < PREFETCH_SECONDS < STALE_SECONDS


# Limits


def test_the_watch_wakes_up_before_the_lease_of_a_running_task_expires() -> None:
    # Found by the simulation: it slept 0.2 s too long, and a task with a lease of 2 s still ran when it was reaped.
    worker = StubWorker()
    line = on(worker)
    line.add([task(1, lease=2.0)])
    line.pump()
    running = worker.start()
    due_in = Limits().due_in([worker], time.monotonic())  # type: ignore[list-item]
    left = running.lease_deadline - lease_clock.now()
    assert due_in == pytest.approx(left, abs=running.step.policy.lease.total_seconds() * LEASE_MARGIN)
    assert due_in < left


def test_a_lease_expires_while_the_machine_is_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The monotonic clock stops during a suspend, so by that clock the lease would still be valid."""

    class Killed(StubWorker):
        killing = False
        kill_message = ""
        reasons: list[str]

        def kill_task(self, task: Task, seen: str, why: str, *, last_words: float) -> bool:
            self.reasons = [seen]
            return False

    worker = Killed()
    line = on(worker)
    line.add([task(1), task(2)])
    line.pump()
    worker.start()
    assert line.overdue(time.monotonic()) == []
    slept = lease_clock.now() + 60
    monkeypatch.setattr(lease_clock, "now", lambda: slept)
    assert [waiting.token for waiting in line.overdue(time.monotonic())] == [2]
    Limits().enforce([worker], time.monotonic())  # type: ignore[list-item]
    assert worker.reasons == [Observation.KILLED_LEASE]


def test_the_guardian_knows_of_a_lease_before_the_task_is_sent() -> None:
    worker = StubWorker()
    line = on(worker)
    line.add([task(1, lease=60.0), task(2, lease=2.0)])
    learn(line, 0.0001)
    line.pump()
    crew: Any = line._pool
    assert min(crew.guardian.deadlines) == min(task.lease_deadline for task in worker.tasks.values())
