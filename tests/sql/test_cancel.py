"""Cancel is final, in every state and in every race (promise 13)."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from apps import cancelling
from committing import NEXT_LANE, Committing, attempts_of, play
from db import (
    AGES_AGO,
    IN_AN_HOUR,
    LANE,
    Connection,
    claim,
    finish,
    held_task,
    insert,
    insert_held,
    row_of,
    spawn,
    value,
    with_store,
)
from harness import Supervisor, eventually, outcomes, states
from places import APPS

from underway import Context, Done, InvalidOption, RunCancelled, Status, To, Underway, aio
from underway.definition.manifest import Step
from underway.postgres import client_queries
from underway.postgres.supervisor_store import Store
from underway.supervisor.loops.cancel import Cancellation
from underway.supervisor.tasks.dispatch import Dispatch
from underway.supervisor.tasks.held import HeldTasks
from underway.supervisor.tasks.task import Task
from underway.supervisor.tasks.verdict import Observation

US = uuid4()


def status(connection: Connection, run: str) -> str | None:
    return client_queries.status(connection, UUID(run))


# One call


@pytest.mark.parametrize("owner", [US, uuid4()])
def test_a_run_in_progress_is_marked_once_and_supervisors_are_notified(any_database: str, owner: UUID) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        run, token = insert_held(connection, owner)
        with psycopg.connect(any_database, autocommit=True) as listener:
            listener.execute("listen underway")
            assert client_queries.cancel(connection, UUID(run))
            assert not client_queries.cancel(connection, UUID(run))
            connection.execute("select pg_notify('underway', 'the last')")
            heard = [notify.payload for notify in listener.notifies(timeout=10, stop_after=2)]
        assert heard == ["cancel", "the last"]
        row = row_of(connection, "run", run)
        assert row is not None
        assert (row["state"], row["cancel_requested"], row["token"]) == ("in_progress", True, token)
        assert with_store(any_database, lambda store: store.cancel_requests(), owner) == [(run, token, 0, 0)]


def test_all_live_runs_of_a_job_are_cancelled_and_no_others(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        live = [insert(connection), insert(connection, state="waiting"), insert_held(connection, US)[0]]
        insert_held(connection, US, cancel_requested=True)
        other = insert(connection, job="another")
        assert client_queries.cancel_job(connection, LANE.job) == 3
        assert client_queries.cancel_job(connection, LANE.job) == 0
        assert [status(connection, run) for run in live] == ["cancelled", "cancelled", "in_progress"]
        assert status(connection, other) == "pending"


def test_the_live_run_with_a_unique_key_is_cancelled(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        run = insert(connection, unique_key="order 1")
        others = [insert(connection, unique_key="order 2"), insert(connection, job="another", unique_key="order 1")]
        assert client_queries.cancel_key(connection, LANE.job, unique_key="order 1") == 1
        assert client_queries.cancel_key(connection, LANE.job, unique_key="order 1") == 0
        assert status(connection, run) == "cancelled"
        assert [status(connection, other) for other in others] == ["pending", "pending"]
        assert insert(connection, unique_key="order 1")  # the key is free


def test_the_live_runs_with_a_concurrency_key_are_cancelled(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        key: dict[str, Any] = {"concurrency_key": "tenant 1", "concurrency_limit": 2}
        in_line = [insert(connection, state="waiting", due_at=None, **key) for _ in range(2)]
        pending = insert(connection, holds_key=True, **key)
        running, _ = insert_held(connection, US, holds_key=True, **key)
        others = [
            insert(connection, holds_key=True, concurrency_key="tenant 2"),
            insert(connection, job="another", state="waiting", due_at=None, **key),
            insert(connection, unique_key="tenant 1"),
        ]
        assert client_queries.cancel_key(connection, LANE.job, concurrency_key="tenant 1") == 4
        assert client_queries.cancel_key(connection, LANE.job, concurrency_key="tenant 1") == 0
        assert {status(connection, run) for run in (*in_line, pending)} == {"cancelled"}
        assert status(connection, running) == "in_progress"  # marked; its supervisor stops it
        # The slot that came free goes to a run of the other job.
        assert [status(connection, other) for other in others] == ["pending", "pending", "pending"]


# Races with a transaction that has locked the row: the cancel waits for it, and acts on the row that it leaves


@contextmanager
def open_transaction(database: str, *writes: str) -> Iterator[Connection]:
    """Another transaction with these writes, committed at the end of the block."""
    with psycopg.connect(database) as other:
        for write in writes:
            other.execute(write)
        yield other
        other.commit()


@pytest.mark.parametrize(
    ("write", "cancelled", "expected"),
    [
        pytest.param(
            f"update underway.run set state = 'in_progress', owner = '{US}', token = 7, lease_expires_at = now()",
            True, ("in_progress", True), id="claimed",
        ),
        pytest.param("update underway.run set state = 'waiting'", True, ("cancelled", None), id="retry"),
        pytest.param(
            "update underway.run set step = 'next', state = 'pending'", True, ("cancelled", None), id="next step"
        ),
        pytest.param(
            f"update underway.run set step = 'next', state = 'in_progress', owner = '{US}', token = 8,"
            " lease_expires_at = now()",
            True, ("in_progress", True), id="next step, claimed by the same commit",
        ),
        pytest.param("delete from underway.run", False, (None, None), id="finished"),
    ],
)  # fmt: skip
def test_a_cancel_waits_for_an_open_write_and_acts_on_its_result(
    any_database: str, write: str, cancelled: bool, expected: tuple[str | None, bool | None]
) -> None:
    answers: list[bool] = []

    def cancel(connection: Connection) -> None:
        answers.append(client_queries.cancel(connection, UUID(run)))

    waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    with (
        psycopg.connect(any_database, autocommit=True) as connection,
        psycopg.connect(any_database, autocommit=True) as canceller,
    ):
        run = insert(connection)
        with open_transaction(any_database, write):
            thread = threading.Thread(target=cancel, args=[canceller])
            thread.start()
            eventually(lambda: value(connection, waits) == 1)
        thread.join()
        row = row_of(connection, "run", run)
        assert answers == [cancelled]
        assert (status(connection, run), row and row["cancel_requested"]) == expected


def test_a_claim_skips_a_run_that_is_being_cancelled(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection, psycopg.connect(any_database) as canceller:
        run, other = insert(connection), insert(connection)
        assert client_queries.cancel(canceller, UUID(run))
        assert [claimed.run for claimed in claim(any_database)] == [other]
        canceller.commit()
        assert status(connection, run) == "cancelled"


def test_concurrent_cancels_in_different_orders_do_not_deadlock(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        for _ in range(200):
            insert(connection)

        def cancel(order: str) -> None:
            with psycopg.connect(any_database, autocommit=True) as canceller:
                canceller.execute(
                    f"select underway.cancel_runs((select array_agg(id order by id {order}) from underway.run))"
                )

        threads = [threading.Thread(target=cancel, args=[order]) for order in ("asc", "desc") * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert states(connection) == {"cancelled": 200}


# Races with an outcome that is not yet committed


def _late(ending: str) -> Callable[[Committing, str], Task]:
    def submit(committing: Committing, run: str) -> Task:
        if ending in ("done", "next"):
            return committing.submit(run, ending=ending, spawned=[spawn()])
        return committing.fail(run, Observation(ending))

    return submit


@pytest.mark.parametrize(
    "ending",
    [
        "done",
        "next",
        Observation.RETRY,
        Observation.FAIL,
        Observation.DIED,
        Observation.KILLED_SHUTDOWN,
        Observation.KILLED_TIMEOUT,
    ],
)
def test_an_outcome_after_the_cancel_ends_the_run_as_cancelled(
    database: str, connection: Connection, ending: str
) -> None:
    run, other = insert(connection), insert(connection)

    async def script(committing: Committing) -> None:
        assert client_queries.cancel(connection, UUID(run))
        _late(ending)(committing, run)
        committing.submit(other)

    committing = play(database, script, workers=1, lanes={NEXT_LANE: Step("next")})
    assert not committing.held
    assert committing.stayed == []
    assert (status(connection, run), status(connection, other)) == ("cancelled", "succeeded")
    assert attempts_of(connection, run) == [("cancelled", 1)]
    attempt = row_of(connection, "attempt", run)
    assert attempt is not None
    assert attempt["started_at"] is not None
    assert value(connection, "select count(*) from underway.runs where job = 'child'") == 0
    assert committing.commits.outcomes == {"cancelled": 1, "succeeded": 1}


def test_a_task_that_never_started_leaves_no_attempt(database: str, connection: Connection) -> None:
    run = insert(connection)

    async def script(committing: Committing) -> None:
        assert client_queries.cancel(connection, UUID(run))
        committing.fail(run, Observation.NEVER_STARTED)
        committing.commits._queue._waiting[0] = _never_started(committing)

    def _never_started(committing: Committing) -> Any:
        (ended,) = committing.commits._queue._waiting
        return ended._replace(row=ended.row._replace(attempt=ended.row.attempt._replace(started=None)))

    play(database, script)
    assert (status(connection, run), attempts_of(connection, run)) == ("cancelled", [])


def test_a_next_step_claimed_by_the_same_commit_is_stopped_under_its_new_token(
    database: str, connection: Connection
) -> None:
    """The request is found before the supervisor knows the new token, and again afterwards."""
    run = insert(connection)

    async def script(committing: Committing) -> None:
        committing.submit(run, ending="next")

    async def then(committing: Committing) -> None:
        (task,) = committing.stayed
        stopper = CancellationUnderTest(committing.store)
        stopper.held.add([before := held_task_of(run)])  # the previous step, whose commit is not yet confirmed
        assert client_queries.cancel(connection, UUID(run))
        assert not await stopper.cancels.poll()
        assert status(connection, run) == "in_progress"
        stopper.held.end(before)
        stopper.held.commit(before)
        stopper.held.add([task])
        assert await stopper.cancels.poll()
        assert stopper.recorded == [(run, Observation.CANCELLED)]

    play(database, script, workers=1, lanes={NEXT_LANE: Step("next")}, then=then)


def held_task_of(run: str) -> Task:
    from underway.postgres.supervisor_store import Claimed

    return held_task(Claimed(run, 0, LANE, 0, 0, 0, 0, None, b"null"))


class CancellationUnderTest:
    """A `Cancellation` with a real store and no worker pool."""

    def __init__(self, store: Store) -> None:
        self.held = HeldTasks()
        self.recorded: list[tuple[str, Observation]] = []
        no_pool: Any = None
        results: Any = self
        self.cancels = Cancellation(store, Dispatch(no_pool, self.held), results, self.held)

    def record_failure(self, task: Task, observation: Observation, _error: str) -> None:
        self.recorded.append((task.run, observation))


def test_a_cancelled_run_whose_claim_was_lost_is_closed_and_not_released(database: str, connection: Connection) -> None:
    run, _ = insert_held(connection, US, attempts=1, crashes=2)
    assert client_queries.cancel(connection, UUID(run))

    async def poll(store: Store) -> None:
        await store.release_unknown([])
        assert status(connection, run) == "in_progress"
        assert await CancellationUnderTest(store).cancels.poll()

    with_store(database, poll, US)
    finished = row_of(connection, "finished_run", run)
    assert finished is not None
    assert (finished["state"], finished["attempts"], finished["crashes"]) == ("cancelled", 1, 2)
    assert attempts_of(connection, run) == []


def test_a_supervisor_does_not_close_a_run_of_another(database: str, connection: Connection) -> None:
    run, token = insert_held(connection, US)
    assert client_queries.cancel(connection, UUID(run))

    async def meddle(store: Store) -> None:
        assert await CancellationUnderTest(store).cancels.poll()
        assert await store.finish([finish(run, token, state="cancelled", payload=None)], []) == set()

    with_store(database, meddle)
    assert status(connection, run) == "in_progress"


def test_the_reaper_closes_a_cancelled_run_of_a_dead_owner_without_a_crash(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        run, token = insert_held(connection, US, lease_expires_at=AGES_AGO, crashes=1, max_crashes=2, attempt_number=3)
        assert client_queries.cancel(connection, UUID(run))
        assert with_store(any_database, lambda store: store.reap(10)) == [(run, token, "cancelled")]
        finished = row_of(connection, "finished_run", run)
        assert finished is not None
        assert (finished["state"], finished["crashes"], finished["input"]) == ("cancelled", 1, {"n": 1})
        assert attempts_of(connection, run) == [("cancelled", 4)]
        assert not client_queries.cancel(connection, UUID(run))


# The key of a cancelled run


def _holder_and_next(connection: Connection, **columns: Any) -> tuple[str, str]:
    key = {"concurrency_key": "key", "concurrency_limit": 1}
    holder = insert(connection, holds_key=True, **key, **columns)
    return holder, insert(connection, state="waiting", due_at=None, **key)


def test_cancelling_a_pending_run_grants_its_key_to_the_next_in_line(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        holder, following = _holder_and_next(connection)
        assert client_queries.cancel(connection, UUID(holder))
        assert status(connection, following) == "pending"


@pytest.mark.parametrize("closed_by", ["its owner", "the reaper"])
def test_a_cancelled_run_in_progress_keeps_its_key_until_it_is_closed(any_database: str, closed_by: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        lease = AGES_AGO if closed_by == "the reaper" else IN_AN_HOUR
        held = {"state": "in_progress", "owner": str(US), "token": 7, "lease_expires_at": lease}
        holder, following = _holder_and_next(connection, **held)
        assert client_queries.cancel(connection, UUID(holder))
        assert status(connection, following) == "waiting"

        async def close(store: Store) -> None:
            if closed_by == "the reaper":
                assert await store.reap(10) == [(holder, 7, "cancelled")]
            else:
                assert await store.finish([finish(holder, 7, state="cancelled", payload=None)], []) == {7}

        with_store(any_database, close, US)
        assert (status(connection, holder), status(connection, following)) == ("cancelled", "pending")


# With real supervisors and workers


@pytest.fixture
def start(start_supervisor: Callable[..., Supervisor], stage: Path) -> Callable[..., Supervisor]:
    def start(*options: str) -> Supervisor:
        env = {"PYTHONPATH": str(APPS.parent), "STAGE": str(stage)}
        return start_supervisor("apps.cancelling:app", *options, env=env)

    return start


@pytest.fixture
def app(bind: Callable[[Underway], Underway]) -> Underway:
    return bind(cancelling.app)


def began(stage: Path, how: str) -> int:
    """The PID of the worker that has started the step."""
    file = stage / f"began {how}"
    return int(eventually(lambda: file.exists() and file.read_text(), what=how))


def test_a_running_step_is_interrupted_and_its_run_ends_there(
    app: Underway, connection: Connection, start: Callable[..., Supervisor], stage: Path
) -> None:
    """Whatever the step does on the interrupt: let it propagate, hand over, ask for a retry, or crash."""
    ways = ["cleans up", "goes on", "retries", "dies"]
    started = {how: cancelling.stoppable.enqueue(how) for how in ways}
    supervisor = start("--procs", "4")
    for how in ways:
        began(stage, how)
    with app.connection() as conn:  # in the caller's transaction
        assert app.cancel(started["cleans up"].id, conn=conn)
        assert cancelling.stoppable.cancel_all(conn=conn) == 3
        assert not started["dies"].cancel(conn=conn)
    for how, run in started.items():
        with pytest.raises(RunCancelled, match=f"run {run.id} was cancelled"):
            run.result(20)
        assert (stage / f"interrupted {how}").read_text() == "cancel"
        assert not (stage / f"went on {how}").exists()
        (attempt,) = run.attempts()
        assert (attempt.step, attempt.number, attempt.outcome) == ("first", 1, "cancelled")
        assert attempt.started_at is not None
        assert not run.cancel()
    assert value(connection, "select sum(attempts + crashes) from underway.runs") == 0
    assert value(connection, "select count(*) from underway.runs where job = 'echoes'") == 0
    assert supervisor.log.count("interrupted: the run was cancelled") == 4
    # The workers keep working.
    assert cancelling.echoes.enqueue("x").result(20) == "x"


def test_a_step_that_ignores_the_interrupt_is_killed_before_its_run_is_closed(
    app: Underway, connection: Connection, start: Callable[..., Supervisor], stage: Path
) -> None:
    run = cancelling.stoppable.enqueue("does not end")
    supervisor = start("--procs", "2")
    worker = began(stage, "does not end")
    # No notification, as behind a pooler: the request is found by polling.
    connection.execute("update underway.run set cancel_requested = true")
    eventually((stage / "interrupted does not end").exists)
    assert cancelling.echoes.enqueue("meanwhile").result(20) == "meanwhile"
    assert run.status() is Status.IN_PROGRESS
    assert worker in [process.pid for process in supervisor.workers()]
    assert run.wait(20) is Status.CANCELLED
    assert worker not in [process.pid for process in supervisor.workers()]
    (attempt,) = run.attempts()
    assert attempt.outcome == "cancelled"
    assert "killed: cancelled: it did not end within 5.0 s of its interrupt" in supervisor.log
    assert value(connection, "select crashes from underway.runs where id = %s", [run.id]) == 0


def test_the_reaper_closes_a_cancelled_run_whose_supervisor_was_killed(
    app: Underway, connection: Connection, start: Callable[..., Supervisor], stage: Path
) -> None:
    run = cancelling.short_lived.enqueue("outlives its supervisor")
    first = start("--procs", "1")
    began(stage, "outlives its supervisor")
    assert run.cancel()
    eventually((stage / "interrupted outlives its supervisor").exists)
    first.send(signal.SIGKILL)
    first.wait()
    assert run.status() is Status.IN_PROGRESS
    second = start("--procs", "1")
    assert run.wait(20) is Status.CANCELLED
    second.until("run taken back, cancelled")
    assert outcomes(connection) == {"cancelled": 1}


def test_prefetched_and_pipelined_tasks_of_cancelled_runs_do_not_start(
    app: Underway, connection: Connection, start: Callable[..., Supervisor], stage: Path
) -> None:
    cancelling.shorts.enqueue_many(range(3000))
    start("--procs", "2")
    eventually(lambda: states(connection).get("succeeded", 0) > 200)
    cancelled = cancelling.shorts.cancel_all()
    assert cancelled > 0
    eventually(lambda: states(connection).keys() == {"succeeded", "cancelled"})
    assert states(connection)["cancelled"] == cancelled
    # Only runs that had started have an attempt.
    assert outcomes(connection).get("cancelled", 0) < cancelled


def test_cancel_refuses_a_connection_or_keys_of_the_wrong_kind(app: Underway) -> None:
    conn: Any = object()
    calls: list[Callable[[], object]] = [
        lambda: app.cancel(uuid4(), conn=conn),
        lambda: cancelling.echoes.cancel_all(conn=conn),
        lambda: cancelling.echoes.cancel(unique_key="x", conn=conn),
    ]
    for call in calls:
        with pytest.raises(InvalidOption, match="psycopg"):
            call()
    assert cancelling.echoes.cancel(unique_key="x") == 0
    wrong: tuple[dict[str, Any], ...] = ({}, {"unique_key": "x", "concurrency_key": "x"})
    for keys in wrong:
        with pytest.raises(InvalidOption, match="by unique_key= or by concurrency_key="):
            cancelling.echoes.cancel(**keys)


def test_cancel_by_a_concurrency_key_from_python(app: Underway) -> None:
    ours, theirs = (cancelling.echoes.enqueue("x", concurrency_key=key) for key in ("ours", "theirs"))
    assert cancelling.echoes.cancel(concurrency_key="ours") == 1
    assert (ours.status(), theirs.status()) == (Status.CANCELLED, Status.WAITING)


# The concurrency keys of a job's steps, and the steps at which a run with the key might not be found.
COVERED: dict[str, tuple[list[str | None], list[str]]] = {
    "one step": (["{}"], []),
    "one step, key given at enqueue": ([None], []),
    "every step has it": (["{}", "{}"], []),
    "the last has none": (["{}", None], ["step1"]),
    "the first has none": ([None, "{}"], ["step0"]),
    "no step has one, key given at enqueue": ([None, None], ["step0", "step1"]),
    "the steps have different ones": (["{}", "{}", "smtp"], ["step2"]),
}


@pytest.mark.parametrize("which", COVERED)
@pytest.mark.parametrize("how", ["sync", "async"])
def test_cancel_by_a_concurrency_key_covers_every_run_with_it_or_is_refused(
    database: str, connection: Connection, which: str, how: str
) -> None:
    """(A run had moved on to a step without the key, and was not cancelled.)"""
    given, elsewhere = COVERED[which]
    app = Underway(database)
    job: Any = app.job("covered")
    for number, key in enumerate(given):
        options: Any = {} if key is None else {"concurrency_key": key.replace("{}", "{tenant}")}
        last = number == len(given) - 1
        job = job.step(end if last else move_on, name=f"step{number}", **options)
    for number, key in enumerate(given):
        filled = "7" if key is None and not number else key and key.replace("{}", "7")
        state = "pending" if filled is None else "waiting"
        insert(connection, job="covered", step=f"step{number}", state=state, concurrency_key=filled)
    with closing(app):
        if not elsewhere:
            assert cancel_key(job, how) == len(given)
            return
        with pytest.raises(InvalidOption, match=r"does not cover job 'covered'") as raised:
            cancel_key(job, how)
    assert f"a run at step {', '.join(map(repr, elsewhere))} has another concurrency key or none" in str(raised.value)
    assert f"({len(elsewhere)} live runs stand there now)" in str(raised.value)
    assert value(connection, "select count(*) from underway.run where not cancel_requested") == len(given)


def cancel_key(job: Any, how: str) -> int:
    if how == "sync":
        return int(job.cancel(concurrency_key="7"))

    async def cancel() -> int:
        try:
            return await aio.cancel(job, concurrency_key="7")
        finally:
            await job.database.close_async()

    return asyncio.run(cancel())


def move_on(cx: Context, value: dict[str, str]) -> To[dict[str, str]]:
    return To.next(value)


def end(cx: Context, value: dict[str, str]) -> Done:
    return To.done()


def test_a_cancel_that_is_rolled_back_changes_nothing(app: Underway) -> None:
    run = cancelling.echoes.enqueue("x")
    with app.connection() as conn:
        assert run.cancel(conn=conn)
        conn.rollback()
    assert run.status() is Status.PENDING
