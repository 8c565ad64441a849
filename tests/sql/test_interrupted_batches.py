"""Statements that succeed only with few rows: each loop retries them with fewer."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from db import AGES_AGO, LANES, STEP, Connection, held_task, insert, insert_held, value
from psycopg.rows import TupleRow
from rosters import roster_of

from underway.definition.manifest import Job, Manifest
from underway.postgres import reconnecting
from underway.postgres.listener import Wakeup
from underway.postgres.queries import statements
from underway.postgres.reconnecting import STATEMENT_SECONDS, DatabaseUnavailable, ReconnectingConnection
from underway.postgres.supervisor_store import Store
from underway.supervisor.loops.backends import BackendLoop
from underway.supervisor.loops.promote import PromoteLoop
from underway.supervisor.loops.reap import ReapLoop
from underway.supervisor.loops.renew import RenewLoop
from underway.supervisor.loops.retention import RetentionLoop
from underway.supervisor.loops.schedule import ScheduleLoop
from underway.supervisor.signals import Signals
from underway.supervisor.tasks.held import HeldTasks
from underway.supervisor.tasks.task import Task

COUNT = 40
FITTING = 3
MAX_TURNS = 200  # only a few of them are interruptions

FINISHED = (
    "insert into underway.finished_run (id, created_at, expires_at, keep, attempts, crashes, releases, state, priority,"
    " queue, job, step) values (%s, now(), now() - interval '1 minute', '1 day', 0, 0, 0, 'failed', 0, 'default',"
    " 'job', 'step')"
)
SCHEDULE = (
    "insert into underway.schedule (job, name, cron, zone, catch_up, overlap, input, next_at) values"
    " ('job', 'default', '* * * * *', 'UTC', 'all', true, 'null', date_trunc('minute', now()) - %s * interval '1 min')"
)


class InterruptingConnection(ReconnectingConnection):
    """Interrupts statements with more than a few rows."""

    def __init__(self, conninfo: str) -> None:
        super().__init__(conninfo)
        self.interrupted = 0

    async def fetch(
        self, statement: str, parameters: Mapping[str, Any] | None = None, *, seconds: float = STATEMENT_SECONDS
    ) -> list[TupleRow]:
        given = parameters or {}
        if max(given.get("limit", 0), len(given.get("ids", ()))) > FITTING and statement != "upcoming_schedules":
            self.interrupted += 1
            raise DatabaseUnavailable("canceling statement due to statement timeout")
        return await super().fetch(statement, parameters, seconds=seconds)


class Side:
    """The dependencies of a supervisor's loops."""

    def __init__(self, database: str, owner: UUID) -> None:
        self.work, self.leases = InterruptingConnection(database), InterruptingConnection(database)
        self.store = Store(self.work, self.leases, owner, "testhost")
        self.held = HeldTasks()
        self.pool: Any = SimpleNamespace(shortest_lease=lambda: 60.0)
        self.lost: list[Task] = []

    @property
    def interrupted(self) -> int:
        return self.work.interrupted + self.leases.interrupted


Turn = Callable[[], Awaitable[object]]


def reaping(side: Side) -> Turn:
    backends: Any = BackendLoop(side.store)
    loop = ReapLoop(side.store, side.work, backends, side.pool, Signals())
    return lambda: loop._reap(4e9)


def promoting(side: Side) -> Turn:
    return PromoteLoop(side.store, Signals())._promote_due


def sweeping(side: Side) -> Turn:
    loop = PromoteLoop(side.store, Signals())

    async def sweep() -> None:
        loop._swept_at = 0.0
        await loop._sweep()

    return sweep


def expiring(side: Side) -> Turn:
    loop = RetentionLoop(side.store)
    return lambda: loop._expire(from_start=True)


def firing(side: Side) -> Turn:
    class Worker:
        manifest = Manifest((Job("job", (STEP,)),))

    class WorkerPool:
        roster = roster_of([Worker])

    pool: Any = WorkerPool
    return ScheduleLoop(side.work, pool, Signals()).turn


def renewing(side: Side) -> Turn:
    signals = Signals()
    signals.task_lost.connect(side.lost.append)
    loop = RenewLoop(side.store, Wakeup(side.leases, print), side.held, side.pool, signals)

    async def renew() -> None:
        if not side.held:
            for claimed in await side.store.claim(LANES, COUNT, candidates=COUNT, suspects=1):
                side.held.add([task := held_task(claimed)])
                task.progress = b'{"done": 1}'
        await loop.renew(list(side.held))

    return renew


def pending(connection: Connection) -> None:
    for _ in range(COUNT):
        insert(connection)


def waiting(connection: Connection) -> None:
    for _ in range(COUNT):
        insert(connection, state="waiting", due_at=AGES_AGO, rank=AGES_AGO)


def waiting_with_keys(connection: Connection) -> None:
    for number in range(COUNT):
        insert(connection, state="waiting", due_at=AGES_AGO, rank=AGES_AGO, concurrency_key=str(number))


def in_line(connection: Connection) -> None:
    for number in range(COUNT):
        insert(connection, state="waiting", due_at=None, rank=AGES_AGO, concurrency_key=str(number))


def leases_expired(connection: Connection) -> None:
    for _ in range(COUNT):
        insert_held(connection, uuid4(), lease_expires_at=AGES_AGO)


def retention_passed(connection: Connection) -> None:
    for _ in range(COUNT):
        connection.execute(FINISHED, [uuid4()])


def a_schedule(connection: Connection) -> None:
    connection.execute(SCHEDULE, [COUNT])


NONE = "select not exists (select from underway.run where state = '{}')"
NONE_FINISHED = "select not exists (select from underway.finished_run)"
ALL_FIRED = f"select count(*) > {COUNT} from underway.run"
ALL_PROGRESS = f"select count(progress) = {COUNT} from underway.run"
LOOPS = [
    pytest.param(leases_expired, reaping, NONE.format("in_progress"), id="reaper"),
    pytest.param(waiting, promoting, NONE.format("waiting"), id="promoter"),
    pytest.param(waiting_with_keys, promoting, NONE.format("waiting"), id="promoter, with keys"),
    pytest.param(in_line, sweeping, NONE.format("waiting"), id="sweep"),
    pytest.param(retention_passed, expiring, NONE_FINISHED, id="retention"),
    pytest.param(a_schedule, firing, ALL_FIRED, id="schedules"),
    pytest.param(pending, renewing, ALL_PROGRESS, id="leases"),
]


@pytest.mark.parametrize(("prepare", "loop", "is_done"), LOOPS)
def test_a_loop_completes_although_only_a_few_rows_pass_at_a_time(
    database: str,
    connection: Connection,
    prepare: Callable[[Connection], object],
    loop: Callable[[Side], Turn],
    is_done: str,
) -> None:
    prepare(connection)

    async def play() -> None:
        side = Side(database, uuid4())
        turn = loop(side)
        for _ in range(MAX_TURNS):
            try:
                await turn()
            except DatabaseUnavailable:
                continue
            if value(connection, is_done):
                break
        assert value(connection, is_done)
        assert side.interrupted
        assert side.lost == []
        await side.work.close()
        await side.leases.close()

    asyncio.run(play())


def test_a_statement_may_have_a_longer_timeout_than_its_connection(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(reconnecting._SETTINGS, "statement_timeout", "50ms")
    monkeypatch.setitem(statements(), "sleep", "select pg_sleep(0.5), current_setting('statement_timeout')")
    monkeypatch.setitem(statements(), "deadline", "select current_setting('statement_timeout')")

    async def play() -> None:
        connection = ReconnectingConnection(database)
        with pytest.raises(DatabaseUnavailable, match="statement timeout"):
            await connection.fetch("sleep")
        ((_, during),) = await connection.fetch("sleep", seconds=2 * STATEMENT_SECONDS)
        assert during == "20s"
        assert await connection.fetch("deadline") == [("50ms",)]
        assert connection.opened == 1
        assert (await connection.open()).info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        await connection.close()

    asyncio.run(play())
