"""The connection is killed before and after every statement that decides about a run (promises 1 and 3).

Nothing is lost, nothing happens twice, and the work resumes by itself.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import psycopg
import pytest
from committing import NEXT, Committing, Interrupted, attempts_of, play
from db import AGES_AGO, LANE, Connection, ago, go_on, insert, insert_held, open_store, row_of, spawn, value
from psycopg import sql
from psycopg.abc import PQGen
from test_service import LANES, Serving, is_free, now, serve

from underway.definition.manifest import Policy, Step
from underway.definition.retry import RetryPolicy
from underway.guardian import lease_clock
from underway.postgres import client_queries
from underway.postgres.embedded import Cluster
from underway.postgres.reconnecting import DatabaseUnavailable
from underway.postgres.step_transaction import StepConnection, StepTransactions
from underway.postgres.temporary_database import migrated_database
from underway.postgres.transitions import Attempt, succeed
from underway.supervisor.loops import reap
from underway.supervisor.tasks.ended import Ended
from underway.testing.servers import SETTINGS, cluster_folder

MOMENTS = ["before", "after"]
POLICY = Policy(lease=timedelta(seconds=2))
Cut = tuple[str, str]  # a statement, and a moment


class ConnectionCutter:
    """Kills the connection at each of these statements in turn, whichever session sends it next."""

    def __init__(self, connection: Connection, sessions: Sequence[Interrupted], cuts: Sequence[Cut]) -> None:
        self._connection = connection
        self._sessions = sessions
        self.left = list(cuts)
        self._arm()

    def _arm(self) -> None:
        for session in self._sessions:
            session.cut = self._cut(session) if self.left else None
            session.at = frozenset({statement for statement, _ in self.left[:1]})

    def _cut(self, session: Interrupted) -> Callable[[str, int], Any]:
        (_, when), number = self.left[0], len(self.left)

        async def at(moment: str, pid: int) -> None:
            if moment != when or len(self.left) != number:  # the other session was first
                return
            kill(self._connection, pid)
            self.left.pop(0)
            self._arm()
            if moment == "after":  # it took effect, and the answer is lost
                await session.close()
                raise DatabaseUnavailable("server closed the connection unexpectedly")

        return at


def kill(connection: Connection, pid: int) -> None:
    """Returns when the backend is gone."""
    assert value(connection, "select pg_terminate_backend(%s, 10000)", [pid])


# The statements of a supervisor


class Case(NamedTuple):
    """A statement, the cuts without which it is not sent, and whether it is sent while steps run."""

    statement: str
    first: tuple[Cut, ...] = ()
    while_running: bool = False


CASES = [
    Case("register_supervisor"),
    Case("register_job"),
    Case("claim_tasks"),
    Case("release_unknown", (("claim_tasks", "after"),)),
    Case("set_idle"),
    Case("renew_leases", while_running=True),
    Case("continue_runs"),
    Case("finish_runs"),
    Case("owned_runs", (("continue_runs", "after"),)),
    Case("recorded_attempts", (("continue_runs", "after"),)),
    Case("release_unknown", (("continue_runs", "after"),)),
    Case("owned_runs", (("finish_runs", "after"),)),
    Case("recorded_attempts", (("finish_runs", "after"),)),
    Case("rehearse_renewal"),
    Case("reap_runs"),
    Case("terminate_transactions"),
    Case("seconds_until_due"),
    Case("join_key_queue"),
    Case("promote_runs"),
    Case("sweep_keys"),
]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("case", CASES, ids=[" ".join([*(cut[0] for cut in c.first), c.statement]) for c in CASES])
def test_a_statement_that_is_cut_off_does_not_change_the_results(
    database: str, connection: Connection, case: Case, moment: str
) -> None:
    expired = []
    if case.statement in ("reap_runs", "terminate_transactions"):
        expired.append(insert_held(connection, by=uuid4(), lease_expires_at=AGES_AGO)[0])
    keyed = insert(connection, state="waiting", concurrency_key="key", concurrency_limit=1)
    runs = [insert(connection), insert(connection, state="waiting"), keyed, *expired]

    async def script(serving: Serving) -> None:
        serve_under(POLICY, serving)
        cutter = ConnectionCutter(connection, [serving.work, serving.leases], [*case.first, (case.statement, moment)])
        await work(serving, connection, len(runs), lambda: case.while_running and bool(cutter.left))
        await all_cut(cutter)

    assert serve(database, script, workers=len(runs))
    assert value(connection, "select count(*) from underway.run where job <> 'child'") == 0
    children = connection.execute("select input from underway.run where job = 'child'").fetchall()
    assert sorted(child[0] for child in children) == sorted([*runs, *runs]), "one child of each step"
    for run in runs:
        finished = row_of(connection, "finished_run", run)
        assert finished is not None
        assert (finished["state"], finished["attempts"]) == ("succeeded", 0)
        reaped = [("lost", 1), ("succeeded", 2), ("succeeded", 1)]
        assert attempts_of(connection, run) == (reaped if run in expired else [("succeeded", 1), ("succeeded", 1)])


async def all_cut(cutter: ConnectionCutter) -> None:
    """Waits until every cut is made: some statements are sent only when there is nothing else to do."""
    async with asyncio.timeout(10):
        while cutter.left:
            await asyncio.sleep(0.005)


def serve_under(policy: Policy, serving: Serving) -> None:
    lanes = {lane: Step(step.name, policy=policy) for lane, step in LANES.items()}
    serving.silent.roster.lanes = lanes
    for worker in serving.silent.roster.active:
        worker.lanes = lanes


async def work(serving: Serving, connection: Connection, runs: int, hold: Callable[[], bool]) -> None:
    """Plays the workers until this many runs have ended: each step enqueues a child, and waits while `hold()`."""
    async with asyncio.timeout(20):
        while value(connection, "select count(*) from underway.finished_run") < runs:
            for worker in serving.silent.roster.active:
                for task in list(worker.tasks.values()):
                    task.started_at = task.started_at or time.monotonic()
                    if not hold():
                        child = spawn(f'"{task.run}"')
                        serving.succeed(task, has_next_step=task.lane == LANE, spawned=[child])
            serving.service._hand_out()
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("statement", ["continue_runs", "deregister_supervisor"])
def test_a_release_that_is_cut_off_takes_effect_nevertheless(
    database: str, connection: Connection, statement: str, moment: str
) -> None:
    """A supervisor that stops releases a task that its worker has not started."""
    run = insert(connection)
    cutters = []

    async def script(serving: Serving) -> None:
        (task,) = await serving.all_running(1)
        task.started_at = None
        cutters.append(ConnectionCutter(connection, [serving.work, serving.leases], [(statement, moment)]))

    assert serve(database, script)
    assert cutters[0].left == []
    row = now(connection, run)
    assert is_free(row)
    assert (row["attempt_number"], row["releases"]) == (0, 1)
    assert attempts_of(connection, run) == []


def test_a_lease_counts_from_the_sending_of_its_claim(database: str, connection: Connection) -> None:
    """A lease counted from the first try, during an outage, would expire as soon as its task started."""

    async def script(serving: Serving) -> None:
        serve_under(Policy(lease=timedelta(seconds=1)), serving)
        while not value(connection, "select count(*) from underway.supervisor where idle"):
            await asyncio.sleep(0.005)
        async with away(serving.leases):
            insert(connection)
            await asyncio.sleep(2.5)
        (task,) = await serving.all_running(1)
        assert task.lease_deadline > lease_clock.now()
        serving.succeed(task, has_next_step=False)

    assert serve(database, script)


def test_after_an_outage_others_have_time_to_reconnect_before_they_are_reaped(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have a lease and the longest pause between two attempts to connect."""
    monkeypatch.setattr(reap, "LONGEST_PAUSE", 1.5)

    async def script(serving: Serving) -> None:
        serve_under(Policy(lease=timedelta(seconds=1)), serving)
        while not value(connection, "select count(*) from underway.supervisor where idle"):
            await asyncio.sleep(0.005)
        async with away(serving.work):
            run, _ = insert_held(connection, by=uuid4(), lease_expires_at=AGES_AGO)
            await asyncio.sleep(1.5)
        while serving.work.opened == 1:
            await asyncio.sleep(0.001)
        back = time.monotonic()
        async with asyncio.timeout(20):
            while now(connection, run)["crashes"] == 0:
                await asyncio.sleep(0.005)
        assert time.monotonic() - back > 1.4, "the run was reaped too early"

    assert serve(database, script)


def test_after_a_table_lock_others_have_a_lease_to_release_their_tasks(database: str, connection: Connection) -> None:
    """The connections survive, and the reaper waits in the lock queue ahead of the other supervisors."""
    lease, other = 0.3, uuid4()

    async def script(serving: Serving) -> None:
        serve_under(Policy(lease=timedelta(seconds=lease)), serving)
        until = sql.SQL(f"clock_timestamp() + interval '{lease} s'")
        with psycopg.connect(database) as other_session:
            run, token = insert_held(connection, by=other, lease_expires_at=until)
            other_session.execute("lock table underway.run in access exclusive mode")
            await asyncio.sleep(2.5 * lease)
            other_session.rollback()
        await asyncio.sleep(lease / 3)
        async with open_store(database, other) as store:
            release = go_on(run, token, step=LANE.step, payload=None, attempt=Attempt("released", started=ago(1.0)))
            assert await store.continue_([release], [])
        (task,) = await serving.all_running(1)
        serving.succeed(task, has_next_step=False)

    assert serve(database, script)
    assert [outcome for (outcome,) in connection.execute("select outcome from underway.attempt order by token")] == [
        "released",
        "succeeded",
    ]


def test_a_run_that_cannot_be_filed_keeps_no_other_from_being_reaped(database: str, connection: Connection) -> None:
    """Inserted directly: runs with maximal counters, and a run that is already finished and gets no second row."""
    unserved = {"queue": "none", "lease_expires_at": AGES_AGO}
    maximum = 2_000_000_000
    finished = insert(connection)
    assert client_queries.cancel(connection, UUID(finished))
    filed, _ = insert_held(connection, uuid4(), id=finished, **unserved, crashes=9, max_crashes=1)
    others = [
        insert_held(connection, uuid4(), **unserved, attempt_number=maximum)[0],
        insert_held(connection, uuid4(), **unserved, crashes=maximum, max_crashes=maximum)[0],
        insert_held(connection, uuid4(), **unserved)[0],
    ]

    async def script(serving: Serving) -> None:
        async with asyncio.timeout(10):
            while value(connection, "select count(*) from underway.attempt where outcome = 'lost'") <= len(others):
                await asyncio.sleep(0.005)

    assert serve(database, script)
    reaped = {run for (run,) in connection.execute("select run_id::text from underway.attempt")}
    assert reaped == {filed, *others}
    assert client_queries.status(connection, UUID(filed)) == "cancelled"


def test_a_statement_that_waits_for_a_table_lock_is_ended_by_its_lock_timeout(database: str) -> None:
    """Other statements on its connection get their turn, and the supervisor learns that none could write."""

    async def ask() -> None:
        async with open_store(database) as store:
            await store.reap(1)
            with psycopg.connect(database) as other_session:
                other_session.execute("lock table underway.run in share mode")
                with pytest.raises(DatabaseUnavailable, match="lock timeout"):
                    await store.rehearse_renewal()
            assert store._work.opened == 1
            await store.rehearse_renewal()

    asyncio.run(ask())


def test_a_full_notification_queue_makes_the_database_unavailable() -> None:
    """A session listens in a transaction that it never ends, so notifications pile up to the configured limit."""

    async def ask(url: str) -> None:
        async with open_store(url) as store:
            with pytest.raises(DatabaseUnavailable, match="too many notifications"):
                await store._work.fetch("notify_self", {"nonce": "nonce"})
            assert store._work.opened == 1

    with cluster_folder() as folder:
        cluster = Cluster(folder, settings={**SETTINGS, "max_notify_queue_pages": "64"})
        cluster.start()
        with migrated_database(cluster.url("postgres"), "full") as url, psycopg.connect(url) as other_session:
            other_session.execute("listen anything")
            other_session.commit()
            other_session.execute("select 1")
            with psycopg.connect(url, autocommit=True) as notifier, suppress(psycopg.errors.ProgramLimitExceeded):
                while True:
                    notifier.execute("select pg_notify('x', repeat('x', 7000) || n) from generate_series(1, 9) n")
            asyncio.run(ask(url))


def test_after_a_failover_a_run_that_the_standby_has_as_ours_is_released(database: str, connection: Connection) -> None:
    """It is released without a crash, once the worker is dead that runs it under a token unknown to the standby."""
    run = insert(connection)

    async def script(serving: Serving) -> None:
        serve_under(Policy(lease=timedelta(seconds=0.1)), serving)
        (task,) = await serving.all_running(1)
        connection.execute("update underway.run set token = token - 1, lease_expires_at = now() + interval '1 hour'")
        while task.token in serving.service._held:
            await asyncio.sleep(0.005)
        await serving.service._claims._unknown.release()
        assert now(connection, run)["state"] == "in_progress"
        (worker,) = serving.silent.roster.active
        serving.service._results.died(worker)
        (again,) = await serving.all_running(1)
        row = now(connection, run)
        assert (row["crashes"], row["attempts"], row["releases"]) == (0, 0, 1)
        serving.succeed(again, has_next_step=False)

    assert serve(database, script)
    assert attempts_of(connection, run) == [("succeeded", 1)]


def test_runs_that_we_own_unknowingly_are_released_on_each_new_connection(
    database: str, connection: Connection
) -> None:
    """A lagging standby still has runs that we have ended."""

    async def script(serving: Serving) -> None:
        while not value(connection, "select count(*) from underway.supervisor where idle"):
            await asyncio.sleep(0.005)
        run, _ = insert_held(connection, by=serving.owner)
        kill(connection, (await serving.leases.open()).info.backend_pid)
        (task,) = await serving.all_running(1)
        assert (task.run, task.crashes, now(connection, run)["releases"]) == (run, 0, 1)
        serving.succeed(task, has_next_step=False)

    assert serve(database, script)


@asynccontextmanager
async def away(session: Interrupted) -> AsyncIterator[None]:
    """The server is unreachable for this session alone."""
    at, session._conninfo = session._conninfo, "host=127.0.0.1 port=1"  # a closed port
    await session.close()
    yield
    session._conninfo = at


# The statements of a worker, with its own commit among them


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("ending", ["next", "done"])
def test_a_steps_transaction_that_is_cut_off_at_any_statement_commits_once(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch, ending: str, moment: str
) -> None:
    step = Step("step", policy=Policy(retry=RetryPolicy(max_attempts=2, initial_interval=timedelta(milliseconds=1))))
    outcomes = []
    connection.execute("create table effect (run uuid)")
    for trip in range(20):
        run = insert(connection)
        cut = RoundTripCut(connection, trip, moment)
        with monkeypatch.context() as patch:
            patch.setattr(StepConnection, "wait", cut.wait)
            play(database, partial(run_step, database=database, run=run, ending=ending), step=step)
        (first,) = attempts_of(connection, run)
        outcomes.append(first[0])
        effects = "select count(*) from effect where run = %s"
        assert value(connection, effects, [run]) == (first[0] == "succeeded")
        if first[0] == "failed":
            while not connection.execute(
                "update underway.run set state = 'pending' where id = %s and due_at <= now()", [run]
            ).rowcount:
                time.sleep(0.001)
            play(database, partial(run_step, database=database, run=run, ending=ending), step=step)
        assert value(connection, effects, [run]) == 1
        assert [outcome for outcome, _ in attempts_of(connection, run)][-1] == "succeeded"
        assert value(connection, "select count(*) from underway.run where input::text = %s", [f'"{run}"']) == 1
        connection.execute("delete from underway.run")
        if cut.trips <= trip:  # the whole transaction has fewer round trips
            break
    first_success = outcomes.index("succeeded")
    assert outcomes == ["failed"] * first_success + ["succeeded"] * (len(outcomes) - first_success)
    # begin, effect, transaction_token, the hand-over, and COMMIT, which decides
    assert first_success == (5 if moment == "before" else 4)


class RoundTripCut:
    """Replaces `StepConnection.wait`, which every round trip passes through, and kills the connection at the nth."""

    def __init__(self, connection: Connection, trip: int, moment: str) -> None:
        self._connection = connection
        self._trip = trip
        self._moment = moment
        self._wait = StepConnection.wait
        self.trips = 0

    @property
    def wait(self) -> Any:
        def wait(own: StepConnection, gen: PQGen[Any], *args: Any, **options: Any) -> Any:
            cuts = self.trips == self._trip
            self.trips += 1
            if cuts and self._moment == "before":
                kill(self._connection, own.info.backend_pid)
            answer = self._wait(own, gen, *args, **options)
            if cuts and self._moment == "after":
                kill(self._connection, own.info.backend_pid)
                own.close()
                raise psycopg.OperationalError("server closed the connection unexpectedly")
            return answer

        return wait


async def run_step(committing: Committing, database: str, run: str, ending: str) -> None:
    """Runs the step as a worker does, and reports its outcome as its supervisor does."""
    task = committing.task(run)
    child = spawn(f'"{run}"', parent=task.token)

    def step() -> None:
        own = StepTransactions(database, committing.owner, "testhost")
        try:
            own.begin(task.token).execute("insert into effect values (%s)", [run])
            attempt = Attempt("succeeded", None, time.monotonic(), time.monotonic(), 7)
            own.commit(succeed(task, attempt, NEXT if ending == "next" else None, b'"good"'), [child])
        finally:
            own.roll_back()
            own.close()

    try:
        await asyncio.to_thread(step)
    except psycopg.Error as error:
        committing.fail(run, error=str(error))
    else:
        attempt = Attempt("succeeded", started=time.monotonic(), pid=7)
        committing.held.end(task)
        committing.commits.durable(Ended(task, succeed(task, attempt, None, b""), []))
