"""A whole service on a real database, with workers that do nothing: what it holds, hands over and releases."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from committing import NEXT, NEXT_LANE, Interrupted, attempts_of
from db import LANE, Connection, ago, insert, row_of, value
from rosters import roster_of

from underway.definition.manifest import Job, Lane, Manifest, Policy, Step
from underway.postgres import admin_queries
from underway.postgres.reconnecting import DatabaseUnavailable
from underway.postgres.supervisor_store import Claimed, Store
from underway.postgres.transitions import Attempt, succeed
from underway.supervisor.loops import claim, promote, schedule, watch
from underway.supervisor.service import Service
from underway.supervisor.shutdown import StopRequest
from underway.supervisor.tasks import dispatch
from underway.supervisor.tasks.ended import Ended
from underway.supervisor.tasks.task import Task
from underway.supervisor.tasks.verdict import Observation, decide
from underway.wire import messages as wire

# Longer than any of these tests: a run that only the end of its lease would free counts as stuck.
POLICY = Policy(lease=timedelta(seconds=300))
STEPS = (Step("step", policy=POLICY), Step("next", policy=POLICY))
OTHER_LANE = LANE._replace(queue="other")
LANES: dict[Lane, Step] = {LANE: STEPS[0], NEXT_LANE: STEPS[1], OTHER_LANE: STEPS[0]}


class SilentWorker:
    """Accepts all tasks and reports nothing."""

    slot = 1
    pid = 7
    ready = True
    most_pipelined = 1_000
    generation = 0

    def __init__(self) -> None:
        self.lanes = LANES
        self.killing = False
        self.manifest = Manifest((Job(LANE.job, STEPS),))
        self.tasks: dict[int, Task] = {}
        self.revoked: set[int] = set()
        self.handed: list[int] = []

    @property
    def current(self) -> Task | None:
        task = next(iter(self.tasks.values()), None)
        return task if task is not None and task.started_at is not None else None

    def send(self, *messages: wire.Message) -> bool:
        self.handed += [message.token for message in messages if isinstance(message, wire.Assignment)]
        return True

    def drain(self) -> None:
        pass

    def signal(self, number: int) -> None:
        pass

    def kill_task(self, task: Task, reason: str) -> bool:
        """It dies when the test says so."""
        return True


class SilentGuardian:
    def expect_word_by(self, expires_at: float) -> None: ...
    def stand_down(self) -> None: ...


class SilentPool:
    listener: Any = None
    guardian = SilentGuardian()
    manifest = Manifest((Job(LANE.job, STEPS),))
    trouble = ""

    def __init__(self, workers: int) -> None:
        self.roster = roster_of([SilentWorker() for _ in range(workers)], LANES)
        self.descendants = self

    def stop_booting(self) -> None: ...
    def retire_idle(self) -> None: ...
    def check(self, now: float) -> None: ...
    def tend(self) -> None: ...


class Serving:
    def __init__(self, database: str, workers: int) -> None:
        self.owner = uuid4()
        self.work, self.leases = Interrupted(database), Interrupted(database)
        self.store = Store(self.work, self.leases, self.owner, "testhost")
        self.silent = SilentPool(workers)
        self.stop = StopRequest()
        self.claimed: list[int] = []  # the tokens of all claims
        self.looked_in_vain = False
        self._claim: Callable[..., Awaitable[list[Claimed]]] = self.store.claim
        self.store.claim = self._note_claim  # type: ignore[method-assign]

    async def _note_claim(self, *asked: Any, **options: Any) -> list[Claimed]:
        claimed = await self._claim(*asked, **options)
        self.looked_in_vain = self.looked_in_vain or not claimed
        self.claimed += [run.token for run in claimed]
        return claimed

    async def start(self) -> "asyncio.Task[bool]":
        """Like a supervisor: both connections are open before the service starts."""
        await self.work.open()
        await self.leases.open()
        pool: Any = self.silent
        self.service = Service("app", pool, self.store, self.work, self.leases, self.stop)
        return asyncio.create_task(self.service.serve(grace=10, until_idle=False))

    async def running(self) -> Task:
        """The first task that a worker has started."""
        return (await self.all_running(1))[0]

    async def all_running(self, count: int, step: str | None = None) -> list[Task]:
        deadline = time.monotonic() + 20
        while True:
            tasks = [task for worker in self.silent.roster.active for task in worker.tasks.values()]
            tasks = [task for task in tasks if step is None or task.lane.step == step]
            if len(tasks) == count:
                break
            assert time.monotonic() < deadline, f"{len(tasks)} of {count} tasks were handed out"
            await asyncio.sleep(0.002)
        for task in tasks:
            task.started_at = time.monotonic()
        return tasks

    def succeed(self, task: Task, *, has_next_step: bool = True, spawned: Sequence[wire.Spawn] = ()) -> None:
        """Pass on the result of its worker."""
        for worker in self.silent.roster.active:
            worker.tasks.pop(task.token, None)
        attempt = Attempt("succeeded", started=ago(0.001), pid=7)
        row = succeed(task, attempt, NEXT if has_next_step else None, b'{"n": 2}')
        self.service._commits.submit(Ended(task, row, list(spawned)))
        # Not on_messages_processed(), which also wakes the claim loop: a claimed task might get the worker first.
        self.service._commits.hurry()

    def lose_answers(self) -> "asyncio.Event":
        """Let the next commit take effect, and lose its answer."""
        lost = asyncio.Event()

        async def cut(moment: str, pid: int) -> None:
            if moment == "after":
                lost.set()
                raise DatabaseUnavailable("server closed the connection unexpectedly")

        self.work.cut = cut
        return lost


def serve(database: str, play: Callable[[Serving], Awaitable[None]], *, workers: int = 1) -> bool:
    """Serve until the script has ended and the service has drained. Returns whether the drain was clean."""

    async def main() -> bool:
        serving = Serving(database, workers)
        served = await serving.start()
        played = asyncio.ensure_future(play(serving))
        try:
            await asyncio.wait([served, played], return_when=asyncio.FIRST_COMPLETED, timeout=60)
            if served.done():
                served.result()
            assert played.done(), "the script has not ended"
            played.result()
            serving.stop.drain()
            return await asyncio.wait_for(served, 30)
        finally:
            for task in (served, played):
                task.cancel()
            await asyncio.gather(served, played, return_exceptions=True)
            await serving.work.close()
            await serving.leases.close()

    return asyncio.run(main())


def now(connection: Connection, run: str) -> dict[str, Any]:
    row = row_of(connection, "run", run)
    assert row is not None
    return row


def is_free(row: dict[str, Any]) -> bool:
    """Whether the run was released without a charge."""
    return (row["state"], row["owner"], row["attempts"], row["crashes"]) == ("pending", None, 0, 0)


def test_limits_count_from_the_first_moment_after_a_pause(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timeout of 0.2 s was up to a second late when nothing had been held before."""
    monkeypatch.setattr(watch, "_HOUSEKEEPING_SECONDS", 1000)

    async def play(serving: Serving) -> None:
        deadline = time.monotonic() + 20
        while not serving.looked_in_vain:  # and the watch sleeps
            assert time.monotonic() < deadline
            await asyncio.sleep(0.002)
        insert(connection)
        serving.service._claims.wake()
        task = await serving.running()
        task.started_at = time.monotonic() - task.step.policy.timeout.total_seconds()
        serving.service._results.on_messages_processed()
        while task.stop_reason is None:
            assert time.monotonic() < deadline, "the watch loop did not wake up"
            await asyncio.sleep(0.002)
        assert task.stop_reason == "timeout"
        serving.succeed(task, has_next_step=False)

    assert serve(database, play)


def test_the_next_step_needs_no_claim(database: str, connection: Connection) -> None:
    run = insert(connection)

    async def play(serving: Serving) -> None:
        first = await serving.running()
        serving.succeed(first)
        (second,) = await serving.all_running(1, "next")
        row = now(connection, run)
        assert (row["state"], row["owner"], row["token"]) == ("in_progress", str(serving.owner), second.token)
        assert second.token > first.token
        assert serving.claimed == [first.token]
        serving.succeed(second, has_next_step=False)

    assert serve(database, play)
    assert attempts_of(connection, run) == [("succeeded", 1), ("succeeded", 1)]
    assert value(connection, "select count(*) from underway.run") == 0
    finished = row_of(connection, "finished_run", run)
    assert finished is not None
    assert (finished["releases"], finished["crashes"]) == (0, 0)


def test_a_next_step_claimed_during_a_drain_is_released(database: str, connection: Connection) -> None:
    run = insert(connection)

    async def play(serving: Serving) -> None:
        task = await serving.running()
        serving.stop.drain()
        while not serving.service._dispatch.closed:
            await asyncio.sleep(0.001)
        serving.succeed(task)

    assert serve(database, play)
    row = now(connection, run)
    assert is_free(row)
    assert (row["step"], row["input"], row["attempt_number"]) == ("next", {"n": 2}, 0)
    assert attempts_of(connection, run) == [("succeeded", 1)]
    assert value(connection, "select count(*) from underway.supervisor") == 0


def test_a_waiting_next_step_is_released_by_a_drain(database: str, connection: Connection) -> None:
    """It was claimed by its hand-over, but its worker is busy."""
    runs = [insert(connection) for _ in range(2)]

    async def play(serving: Serving) -> None:
        tasks = await serving.all_running(2)
        for task in tasks:
            serving.succeed(task)
        await serving.all_running(2, "next")
        for worker in serving.silent.roster.active:
            for task in worker.tasks.values():
                task.started_at = None

    assert serve(database, play, workers=2)
    for run in runs:
        assert is_free(now(connection, run))
        assert attempts_of(connection, run) == [("succeeded", 1)]


def test_a_hand_over_whose_answer_is_lost_is_claimed_again(database: str, connection: Connection) -> None:
    run = insert(connection)

    async def play(serving: Serving) -> None:
        lost = serving.lose_answers()
        serving.succeed(await serving.running())
        await lost.wait()
        (task,) = await serving.all_running(1, "next")
        assert (task.run, task.releases, task.crashes) == (run, 1, 0)
        assert serving.claimed[-1] == task.token
        serving.succeed(task, has_next_step=False)

    assert serve(database, play)
    assert attempts_of(connection, run) == [("succeeded", 1), ("succeeded", 1)]
    assert value(connection, "select count(*) from underway.run") == 0


def test_a_hand_over_whose_answer_is_lost_during_a_drain_is_released(database: str, connection: Connection) -> None:
    """Nothing is claimed any more, but no run may be left to its lease, which would charge it with a crash."""
    run = insert(connection)

    async def play(serving: Serving) -> None:
        task = await serving.running()
        serving.stop.drain()
        while not serving.service._dispatch.closed:
            await asyncio.sleep(0.001)
        lost = serving.lose_answers()
        serving.succeed(task)
        await lost.wait()

    serve(database, play)
    assert is_free(now(connection, run))
    assert attempts_of(connection, run) == [("succeeded", 1)]


def test_unstarted_tasks_of_a_paused_queue_are_released(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefetched tasks, waiting here or in a worker. (Steps started up to a second after a pause.)"""
    monkeypatch.setattr(dispatch, "STALE_SECONDS", 1000)
    for _ in range(40):
        insert(connection)
    others = [insert(connection, queue="other") for _ in range(3)]
    held = "select count(*) from underway.run where state = 'in_progress'"

    async def play(serving: Serving) -> None:
        for lane in (LANE, OTHER_LANE):
            serving.service._dispatch.record_duration(lane, 0.004)  # short enough to prefetch and pipeline
        (worker,) = serving.silent.roster.active
        while len(worker.tasks) < 2 or value(connection, held) < 43:
            await asyncio.sleep(0.002)
        running = next(iter(worker.tasks.values()))
        running.started_at = time.monotonic()
        assert admin_queries.pause(connection, LANE.queue)
        while value(connection, held) > 4:
            await asyncio.sleep(0.002)
        left = connection.execute("select id::text from underway.run where state = 'in_progress'").fetchall()
        assert {run for (run,) in left} == {running.run, *others}
        assert worker.current is running
        while not serving.service._commits.outcomes:
            await asyncio.sleep(0.002)
        assert set(serving.service._commits.outcomes) == {"released unstarted"}, "no attempt was cut off"
        # Tasks that are claimed after the queue is resumed are kept.
        assert admin_queries.resume(connection, LANE.queue)
        while value(connection, held) < 43:
            running.started_at = time.monotonic()  # while it has just started, tasks are prefetched
            await asyncio.sleep(0.002)
        serving.succeed(running, has_next_step=False)

    assert serve(database, play)
    rows = connection.execute("select attempts, crashes, attempt_number from underway.run").fetchall()
    assert set(rows) == {(0, 0, 0)}


@pytest.fixture
def no_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the poll interval longer than a test, so that only a wake-up can make a loop act."""
    for loop, name in (
        (claim, "POLL_SECONDS"),
        (promote, "_POLL_SECONDS"),
        (promote, "_SWEEP_SECONDS"),
        (schedule, "_POLL_SECONDS"),
    ):
        monkeypatch.setattr(loop, name, 1000)


@pytest.mark.usefixtures("no_polls")
def test_a_retry_needs_no_poll(database: str, connection: Connection) -> None:
    """The promoter sleeps until the retry is due."""

    async def play(serving: Serving) -> None:
        while not (serving.service._claims._wakeup.listening and serving.looked_in_vain and _sleeps(serving)):
            await asyncio.sleep(0.002)
        run = insert(connection)
        serving.service._claims.wake()
        task = await serving.running()
        serving.silent.roster.active[0].tasks.clear()
        attempt = Attempt("failed", "not yet", started=ago(0.001), pid=7)
        serving.service._commits.submit(
            Ended(task, decide(task, Observation.RETRY, attempt, random.Random(1), retry_after=0.3), [])
        )
        again = await serving.running()
        assert (again.run, again.attempts) == (run, 1)
        serving.succeed(again, has_next_step=False)

    assert serve(database, play)


def _sleeps(serving: Serving) -> bool:
    """Whether the promoter sleeps until it is woken."""
    return serving.service._promoter._next_turn_at > time.monotonic() + 900


@pytest.mark.usefixtures("no_polls")
def test_a_slot_needs_no_poll(database: str, connection: Connection) -> None:
    """The loop that fires schedules sleeps until the slot."""
    connection.execute(
        "insert into underway.schedule (job, name, cron, zone, input, next_at)"
        " values (%s, 'yearly', '0 0 1 1 *', 'UTC', '1', now() + interval '1 second')",
        [LANE.job],
    )

    async def play(serving: Serving) -> None:
        task = await serving.running()
        assert task.scheduled_at is not None
        serving.succeed(task, has_next_step=False)

    assert serve(database, play)


@pytest.mark.usefixtures("no_polls")
def test_a_released_key_needs_no_poll(database: str, connection: Connection) -> None:
    in_line = {"state": "waiting", "concurrency_key": "key", "concurrency_limit": 1}
    runs = [insert(connection, **in_line) for _ in range(3)]

    async def play(serving: Serving) -> None:
        for run in runs:
            task = await serving.running()
            assert task.run == run
            serving.succeed(task, has_next_step=False)

    assert serve(database, play)
