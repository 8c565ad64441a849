"""The commit loop of one supervisor with a real store, and a session that a test can cut off."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from uuid import uuid4

from db import LANE, LANES, STEP, Connection, ago, held_task
from psycopg.rows import TupleRow
from rosters import roster_of

from underway.definition.manifest import Lane, Step
from underway.postgres.reconnecting import STATEMENT_SECONDS, ReconnectingConnection
from underway.postgres.supervisor_store import Store
from underway.postgres.transitions import Attempt, succeed
from underway.supervisor.loops.commit import CommitLoop
from underway.supervisor.signals import Signals
from underway.supervisor.tasks.dispatch import Dispatch
from underway.supervisor.tasks.ended import Ended
from underway.supervisor.tasks.held import HeldTasks
from underway.supervisor.tasks.task import Task
from underway.supervisor.tasks.verdict import Observation, decide
from underway.wire import messages
from underway.wire.messages import NextStep

NEXT = NextStep("next", "default", 0, 0.0, 60.0)
NEXT_LANE = Lane("default", LANE.job, "next")


COMMITS = frozenset({"finish_runs", "continue_runs"})


class Interrupted(ReconnectingConnection):
    """A session that a test can cut off around the next of some statements, as a failing network or server does."""

    def __init__(self, conninfo: str) -> None:
        super().__init__(conninfo)
        self.cut: Callable[[str, int], Awaitable[None]] | None = (
            None  # called with "before" and the PID of the server process
        )
        self.at = COMMITS

    async def fetch(
        self, statement: str, parameters: Mapping[str, Any] | None = None, *, seconds: float = STATEMENT_SECONDS
    ) -> list[TupleRow]:
        if self.cut is None or statement not in self.at:
            return await super().fetch(statement, parameters, seconds=seconds)
        cut, self.cut = self.cut, None
        pid = (await self.open()).info.backend_pid
        await cut("before", pid)
        rows = await super().fetch(statement, parameters, seconds=seconds)
        # The server has committed, but its answer is lost.
        await cut("after", pid)
        return rows


class IdleWorker:
    """An idle worker, as far as Dispatch is concerned."""

    def __init__(self) -> None:
        self.tasks: dict[int, Task] = {}
        self.ready = True
        self.current = None
        self.most_pipelined = 1_000


class IdlePool:
    def __init__(self, workers: int, lanes: dict[Lane, Step]) -> None:
        self.roster = roster_of([IdleWorker() for _ in range(workers)], lanes)


class Committing:
    """The commit loop of a supervisor that holds all pending runs of the database.

    It has `workers` idle workers, so up to that many runs are claimed again by their hand-over, if it serves the lane.
    """

    def __init__(self, database: str, workers: int = 0, lanes: dict[Lane, Step] | None = None) -> None:
        self.owner = uuid4()
        self.work = Interrupted(database)
        self.leases = ReconnectingConnection(database)
        self.store = Store(self.work, self.leases, self.owner, "testhost")
        self.held = HeldTasks()
        self.continued: list[float] = []
        self.stayed: list[Task] = []
        self.unknown = 0
        pool: Any = IdlePool(workers, lanes or {})
        self.dispatch = Dispatch(pool, self.held)
        signals = Signals()
        signals.run_pending.connect(lambda: self.continued.append(0.0))
        signals.run_due_in.connect(self.continued.append)
        signals.next_steps.connect(self.stay)
        signals.unknown_runs.connect(self.note_unknown)
        self.commits = CommitLoop(self.store, self.dispatch, self.held, signals, rng=random.Random(1))

    def stay(self, tasks: list[Task]) -> None:
        self.stayed += tasks

    def note_unknown(self) -> None:
        self.unknown += 1

    async def claim(self, step: Step = STEP) -> None:
        while together := await self.store.claim(LANES, 1000, candidates=1000, suspects=1000):
            for claimed in together:
                task = held_task(claimed)
                task.step = step
                self.held.add([task])

    def task(self, run: str) -> Task:
        (task,) = [task for task in self.held if task.run == run]
        return task

    def submit(
        self,
        run: str,
        payload: bytes = b'"good"',
        *,
        ending: str = "done",
        spawned: list[messages.Spawn] | None = None,
        following: NextStep = NEXT,
    ) -> Task:
        """Submit the end of a successful attempt."""
        task = self.task(run)
        attempt = Attempt("succeeded", started=ago(1.0), pid=7)
        row = succeed(task, attempt, following if ending == "next" else None, payload)
        self.commits.submit(Ended(task, row, spawned or []))
        return task

    def fail(self, run: str, seen: Observation = Observation.RETRY, error: str = "oh") -> Task:
        task = self.task(run)
        row = decide(task, seen, Attempt("failed", error, started=ago(1.0)), random.Random(1))
        self.commits.submit(Ended(task, row, []))
        return task


Script = Callable[[Committing], Awaitable[None]]


def play(
    database: str,
    script: Script,
    *,
    step: Step = STEP,
    workers: int = 0,
    lanes: dict[Lane, Step] | None = None,
    then: Script | None = None,
) -> Committing:
    """Claim everything, let the script submit results while the loop runs, and return when all are durable.

    `then` runs after that, while the connections are still open.
    """

    async def main() -> Committing:
        committing = Committing(database, workers, lanes)
        await committing.claim(step)
        loop = asyncio.create_task(committing.commits.run())
        flushed = asyncio.create_task(_scripted(committing, script))
        try:
            await asyncio.wait([loop, flushed], return_when=asyncio.FIRST_COMPLETED, timeout=60)
            if loop.done():
                loop.result()
            assert flushed.done(), "not flushed"
            flushed.result()
            if then is not None:
                await then(committing)
        finally:
            for running in (loop, flushed):
                running.cancel()
            await asyncio.gather(loop, flushed, return_exceptions=True)
            await committing.work.close()
            await committing.leases.close()
        return committing

    return asyncio.run(main())


async def _scripted(committing: Committing, script: Script) -> None:
    await script(committing)
    await committing.commits.flushed()


def attempts_of(connection: Connection, run: str) -> list[tuple[str, int]]:
    rows = connection.execute(
        "select outcome, attempt_number from underway.attempt where run_id = %s order by token", [run]
    )
    return [(outcome, number) for outcome, number in rows]
