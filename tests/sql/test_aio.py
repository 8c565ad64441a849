"""The async client: the same results and the same refusals as the sync client."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import psycopg
import pytest
from apps import clients, letters
from apps.clients import Order
from db import insert, value
from harness import Supervisor, eventually

from underway import (
    Context,
    ImportSideEffect,
    InsideStep,
    InvalidOption,
    NoDatabase,
    PayloadError,
    RunCancelled,
    RunFailed,
    RunNotFound,
    SchemaMissing,
    Status,
    Underway,
    UnknownJob,
    aio,
)
from underway.client import current_step
from underway.definition.app_import import load

T = TypeVar("T")
Connection = psycopg.Connection[Any]


@pytest.fixture
def app(bind: Callable[[Underway], Underway]) -> Underway:
    return bind(clients.app)


@asynccontextmanager
async def closing_app(app: Underway) -> AsyncIterator[None]:
    """Closes what the app has opened on this event loop."""
    try:
        yield
    finally:
        await aio.close(app)


def run_async(app: Underway, use: Callable[[], Coroutine[Any, Any, T]]) -> T:
    async def main() -> T:
        async with closing_app(app):
            return await use()

    return asyncio.run(main())


def backends(connection: Connection) -> int:
    row = connection.execute(
        "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() "
        "and backend_type = 'client backend'"
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_results_statuses_and_attempts_of_runs(app: Underway, start_supervisor: Callable[..., Supervisor]) -> None:
    start_supervisor("clients", "--procs", "2")

    async def use() -> None:
        run = await aio.enqueue(clients.orders, Order(7))
        assert await run.result(timeout=20) == Order(7)
        assert await run.wait() is await run.status() is Status.SUCCEEDED
        assert [(attempt.step, attempt.outcome) for attempt in await run.attempts()] == [("keep_order", "succeeded")]
        assert repr(run) == f"<AsyncRun {run.id}>"
        found = await aio.get_run(app, str(run.id))
        assert found == run == app.get_run(run.id)
        assert await found.result() == Order(7)

        assert (
            await asyncio.gather(*(echo.result(20) for echo in await aio.enqueue_many(clients.echoes, range(9))))
        ) == [*range(9)]
        failing = await aio.enqueue(clients.hopeless, "well")
        with pytest.raises(RunFailed, match="never well"):
            await failing.result(20)
        later = await aio.enqueue(clients.placed, 1)
        with pytest.raises(TimeoutError, match=f"run {later.id} is still waiting after 0.05 s"):
            await later.wait(timeout=0.05)
        assert await later.cancel()
        assert not await later.cancel()
        with pytest.raises(RunCancelled):
            await later.result()

    run_async(app, use)


def test_waiting_neither_blocks_the_loop_nor_holds_connections(app: Underway, connection: Connection) -> None:
    async def use() -> None:
        run = await aio.enqueue(clients.echoes, 1)
        waits = [asyncio.create_task(run.wait()) for _ in range(50)]
        await asyncio.sleep(0.2)
        assert not any(task.done() for task in waits)
        # the size of the pool, not one for each waiting call
        assert backends(connection) <= 4
        await run.cancel()
        assert set(await asyncio.gather(*waits)) == {Status.CANCELLED}

    run_async(app, use)


def test_cancel_in_the_callers_transaction(app: Underway, database: str) -> None:
    async def use() -> None:
        run = await aio.enqueue(clients.echoes, 1)
        async with await psycopg.AsyncConnection.connect(database) as caller:
            assert await run.cancel(conn=caller)
            assert await run.status() is Status.PENDING
            await caller.rollback()
            assert await run.status() is Status.PENDING
            assert await run.cancel(conn=caller)
        assert await run.status() is Status.CANCELLED

    run_async(app, use)


def test_cancel_by_key_and_by_job(app: Underway, connection: Connection) -> None:
    async def use() -> None:
        one, *others = await aio.enqueue_many(clients.echoes, range(3))
        connection.execute("update underway.run set unique_key = 'k' where id = %s", [one.id])
        assert await aio.cancel(clients.echoes, unique_key="k") == 1
        assert await aio.cancel(clients.echoes, unique_key="k") == 0
        assert await aio.cancel(clients.echoes, concurrency_key="k") == 0
        assert [await run.status() for run in (one, *others)] == ["cancelled", "pending", "pending"]
        assert await aio.cancel_all(clients.echoes) == 2

    run_async(app, use)


def test_schedules(app: Underway, database: str) -> None:
    async def use() -> None:
        made = await aio.schedule(clients.echoes, "@daily[Asia/Tokyo]", 7, name="seven", catch_up="none", overlap=False)
        assert (made.cron, made.zone, made.catch_up, made.overlap, made.input) == (
            *("@daily", "Asia/Tokyo", "none", False, 7),
        )
        assert await aio.schedules(app) == app.schedules() == [made]
        async with await psycopg.AsyncConnection.connect(database) as caller:
            assert await aio.unschedule(clients.echoes, "seven", conn=caller)
            await aio.schedule(clients.looking, "@hourly", conn=caller)
            await caller.rollback()
            assert await aio.schedules(app) == [made]
            other = await aio.schedule(clients.looking, "@hourly", conn=caller)
            await caller.commit()
        assert await aio.schedules(app) == [made, other]
        assert await aio.unschedule(clients.echoes, "seven")
        assert not await aio.unschedule(clients.echoes, "seven")

    run_async(app, use)


def test_enqueue_many_is_all_or_nothing(app: Underway, connection: Connection) -> None:
    def failing_values() -> Iterator[Order]:
        yield from (Order(number, "x" * 1000) for number in range(2000))
        raise KeyError("theirs")

    async def use() -> None:
        with pytest.raises(KeyError, match="theirs"):
            await aio.enqueue_many(clients.orders, failing_values())
        assert await aio.enqueue_many(clients.orders, []) == []
        runs = await aio.enqueue_many(clients.orders, (Order(number) for number in range(5000)))
        found = dict(connection.execute("select id, (input->>'number')::int from underway.run").fetchall())
        assert [found[run.id] for run in runs] == list(range(5000))

    run_async(app, use)


def test_concurrent_first_calls_open_one_pool(app: Underway, connection: Connection) -> None:
    async def use() -> None:
        await asyncio.gather(*(aio.enqueue(clients.echoes, number) for number in range(100)))
        assert backends(connection) <= 4

    run_async(app, use)
    assert connection.execute("select count(*) from underway.run").fetchone() == (100,)


def test_each_event_loop_has_its_own_connections(app: Underway, connection: Connection) -> None:
    for _ in range(2):
        run_async(app, lambda: aio.enqueue(clients.echoes, 1))
    assert connection.execute("select count(*) from underway.run").fetchone() == (2,)
    eventually(lambda: backends(connection) == 0)


def test_a_closed_app_opens_again(app: Underway) -> None:
    async def use() -> None:
        await aio.close(app)
        run = await aio.enqueue(clients.echoes, 1)
        await aio.close(app)
        assert await run.status() is Status.PENDING

    run_async(app, use)


def test_a_block_on_the_apps_own_connection_is_one_transaction(app: Underway, connection: Connection) -> None:
    async def use() -> None:
        with pytest.raises(KeyError):  # noqa: PT012
            async with aio.connection(app) as own:
                await aio.enqueue(clients.echoes, 1, conn=own)
                raise KeyError
        async with aio.connection(app) as own:
            await aio.enqueue(clients.echoes, 2, conn=own)

    run_async(app, use)
    assert connection.execute("select input from underway.run").fetchall() == [(2,)]


# Runs by their ID, the schema and the registration


def test_cancel_by_id(app: Underway, database: str) -> None:
    async def use() -> None:
        one, other = await aio.enqueue_many(clients.echoes, range(2))
        assert await aio.cancel_run(app, str(one.id))
        assert not await aio.cancel_run(app, one.id)
        assert await one.status() is Status.CANCELLED
        async with await psycopg.AsyncConnection.connect(database) as caller:
            assert await aio.cancel_run(app, other.id, conn=caller)
            await caller.rollback()
        assert await other.status() is Status.PENDING
        assert not await aio.cancel_run(app, uuid4())

    run_async(app, use)


def test_migrate_and_sync(app: Underway, empty_database: str) -> None:
    async def use() -> None:
        app.database.named = empty_database
        assert await aio.migrate(app)
        assert await aio.migrate(app) == []
        assert await aio.sync(app) == list(app.jobs)

    run_async(app, use)
    with psycopg.connect(empty_database) as connection:
        assert {name for (name,) in connection.execute("select name from underway.job")} == set(app.jobs)


# Queues


def test_pause_and_resume(
    app: Underway, database: str, connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    paused = "select array_agg(name order by name) from underway.queue where paused"

    async def use() -> None:
        assert await aio.pause(app, "default")
        assert not await aio.pause(app, "default")
        async with await psycopg.AsyncConnection.connect(database) as caller:
            assert await aio.pause(app, "slow", conn=caller)
            assert await aio.resume(app, "default", conn=caller)
            assert value(connection, paused) == ["default"]
            await caller.commit()
        assert value(connection, paused) == ["slow"]
        assert await aio.resume(app, "slow")
        assert not await aio.resume(app, "slow")
        assert caplog.messages == []
        assert await aio.pause(app, "slwo")

    run_async(app, use)
    (warning,) = caplog.messages
    assert warning.startswith("pausing unknown queue 'slwo': no job, run or supervisor uses it yet; existing: ")
    assert "'default', 'slow'" in warning


# Failed runs


@pytest.fixture
def letters_app(bind: Callable[[Underway], Underway]) -> Underway:
    return bind(letters.app)


def failed(connection: Connection, label: str | None = "dead", **columns: Any) -> UUID:
    """A run of letters.rendering that has failed for good."""
    run = UUID(insert(connection, **{"job": "rendering", "step": "render", "input": '"x"', **columns}))
    connection.execute("select underway.cancel(%s)", [run])
    connection.execute(
        "update underway.finished_run set state = 'failed', error = 'oh', dead_letter = %s, finished_at = now() "
        "where id = %s",
        [label, run],
    )
    return run


def test_dead_letters(letters_app: Underway, connection: Connection) -> None:
    app = letters_app
    first, second, third = (failed(connection) for _ in range(3))

    async def use() -> None:
        found = await aio.dead_letters(app, "dead")
        assert [letter.run.id for letter in found] == [first, second, third]
        assert isinstance(found[0].run, aio.AsyncRun)
        assert [letter.run for letter in found] == [letter.run for letter in app.dead_letters("dead")]
        assert (found[0].job, found[0].step, found[0].input, found[0].error) == ("rendering", "render", "x", "oh")
        assert await aio.dead_letters(app, "dead", limit=1) == found[:1]

        assert await aio.redrive(app, found[0].run, input="well") == 1
        assert value(connection, "select input from underway.run where id = %s", [first]) == "well"
        assert await found[0].run.status() is Status.PENDING
        assert await aio.redrive(app, first) == 0
        assert await aio.redrive(app, "dead", limit=1) == 1
        assert await aio.discard(app, third) == 1
        assert await aio.discard(app, third) == 0
        assert await aio.redrive(app, str(third)) == 1
        failed(connection)
        assert await aio.discard(app, "dead") == 1
        assert await aio.dead_letters(app, "dead") == []

    run_async(app, use)


def test_dead_letters_in_the_callers_transaction(letters_app: Underway, connection: Connection, database: str) -> None:
    app, run = letters_app, failed(connection)
    query = "select state, dead_letter, input from underway.runs"
    before = connection.execute(query).fetchall()

    async def use() -> None:
        async with await psycopg.AsyncConnection.connect(database) as caller:
            calls: list[Callable[[], Coroutine[Any, Any, int]]] = [
                lambda: aio.redrive(app, run, conn=caller),
                lambda: aio.redrive(app, run, input="other", conn=caller),
                lambda: aio.redrive(app, "dead", conn=caller),
                lambda: aio.discard(app, run, conn=caller),
                lambda: aio.discard(app, "dead", conn=caller),
            ]
            for call in calls:
                assert await call() == 1
                assert connection.execute(query).fetchall() == before
                await caller.rollback()

    run_async(app, use)
    assert connection.execute(query).fetchall() == before


def test_a_refused_redrive_says_why(letters_app: Underway, connection: Connection) -> None:
    app, run, unknown = letters_app, failed(connection), failed(connection, job="unheard-of")
    cancelled = UUID(insert(connection, job="rendering"))
    wrong: Any = 7

    async def use() -> None:
        with pytest.raises(PayloadError):
            await aio.redrive(app, run, input=4)
        with pytest.raises(InvalidOption, match="not a label"):
            await aio.redrive(app, "dead", input="x")
        with pytest.raises(InvalidOption, match="limit= applies to a label"):
            await aio.redrive(app, run, limit=1)
        with pytest.raises(UnknownJob, match="no step 'render' in job 'unheard-of'"):
            await aio.redrive(app, unknown, input="x")
        assert await aio.cancel_run(app, cancelled)
        with pytest.raises(RunCancelled, match="enqueue its input again"):
            await aio.redrive(app, cancelled)
        for call in (aio.redrive, aio.discard):
            with pytest.raises(InvalidOption, match="unknown dead-letter label 'ded'; existing:"):
                await call(app, "ded")
            with pytest.raises(InvalidOption, match="or a dead-letter label, not"):
                await call(app, wrong)
        with pytest.raises(InvalidOption, match="label must be a dead-letter label"):
            await aio.dead_letters(app, str(run))

    run_async(app, use)


def test_the_quarantine(letters_app: Underway, connection: Connection, database: str) -> None:
    app = letters_app
    runs = [failed(connection, None), failed(connection, None), failed(connection, None, job="another")]
    connection.execute("update underway.finished_run set quarantined = true")

    async def use() -> None:
        found = await aio.quarantined(app)
        assert {one.run.id for one in found} == set(runs)
        assert isinstance(found[0].run, aio.AsyncRun)
        assert [one.run for one in found] == [one.run for one in app.quarantined()]
        assert [one.run.id for one in await aio.quarantined(app, "another")] == runs[2:]
        assert len(await aio.quarantined(app, limit=2)) == 2

        async with await psycopg.AsyncConnection.connect(database) as caller:
            assert await aio.release_quarantined(app, conn=caller) == 3
            await caller.rollback()
        assert await aio.release_quarantined(app, "rendering", limit=1) == 1
        assert app.release_quarantined("rendering") == 1
        assert await aio.release_quarantined(app) == 1
        assert app.release_quarantined() == 0
        assert await aio.quarantined(app) == []

    run_async(app, use)
    assert value(connection, "select count(*) from underway.run") == 3


# Refusals


def test_invalid_arguments_are_refused_before_anything_is_written(app: Underway, connection: Connection) -> None:
    async def use() -> None:
        bad: Any
        for bad in (Order("x"), None, {"number": 1}):  # type: ignore[arg-type]
            with pytest.raises(PayloadError):
                await aio.enqueue(clients.orders, bad)
        with pytest.raises(RunNotFound, match="it was never committed"):
            await aio.get_run(app, uuid4())
        not_ids: list[Any] = ["not an id", "orders", None]
        for wrong in not_ids:
            with pytest.raises(InvalidOption, match=r"invalid run ID .*: expected a UUID"):
                await aio.get_run(app, wrong)
        not_jobs: list[Any] = [uuid4(), str(uuid4()), "orders"]
        for wrong in not_jobs:
            for cancel in (aio.cancel, aio.cancel_all):
                with pytest.raises(InvalidOption, match=rf"{cancel.__name__} takes a job, not .*get_run\(app, id\)"):
                    await cancel(wrong)
        with pytest.raises(InvalidOption, match="can never occur"):
            await aio.schedule(clients.echoes, "0 0 30 2 *", 1)
        with pytest.raises(PayloadError, match="Order"):
            await aio.schedule(clients.orders, "@daily", bad)
        assert await aio.schedules(app) == []

    run_async(app, use)
    assert connection.execute("select count(*) from underway.run").fetchone() == (0,)


def test_a_connection_of_the_wrong_kind_is_refused(app: Underway, database: str) -> None:
    async def use() -> None:
        wrong: Any
        with psycopg.connect(database) as wrong:
            for refused in (
                aio.enqueue(clients.echoes, 1, conn=wrong),
                aio.enqueue_many(clients.echoes, [1], conn=wrong),
                aio.schedule(clients.echoes, "@daily", 1, conn=wrong),
                aio.unschedule(clients.echoes, conn=wrong),
                aio.cancel_run(app, uuid4(), conn=wrong),
                aio.pause(app, "default", conn=wrong),
                aio.resume(app, "default", conn=wrong),
                aio.redrive(app, uuid4(), conn=wrong),
                aio.discard(app, uuid4(), conn=wrong),
                aio.release_quarantined(app, conn=wrong),
            ):
                with pytest.raises(InvalidOption, match=r"not Connection; pass a sync connection to job\.enqueue"):
                    await refused
        async with await psycopg.AsyncConnection.connect(database) as wrong:
            with pytest.raises(InvalidOption, match=r"not AsyncConnection; pass an async connection to underway\.aio"):
                clients.echoes.enqueue(1, conn=wrong)

    run_async(app, use)


@pytest.fixture
def in_a_step() -> Iterator[None]:
    no_worker: Any = None
    current_step.set_current(Context(run=str(uuid4()), job="job", step="step", attempt=1, ends_at=0, worker=no_worker))
    yield
    current_step.set_current(None)


@pytest.mark.usefixtures("in_a_step")
def test_inside_a_step_writes_need_conn_and_waits_are_refused(app: Underway, database: str) -> None:
    async def use() -> None:
        with pytest.raises(InsideStep, match=r"enqueue without conn= inside a step \(job.step\): use cx.enqueue"):
            await aio.enqueue(clients.echoes, 1)
        with pytest.raises(InsideStep, match=r"schedule without conn= inside a step \(job.step\): use job.schedule\("):
            await aio.schedule(clients.echoes, "@daily", 1)
        async with await psycopg.AsyncConnection.connect(database) as caller:
            run = await aio.enqueue(clients.echoes, 1, conn=caller)
        for refused in (run.wait(), run.result()):
            with pytest.raises(InsideStep, match=r"Run.wait inside a step \(job.step\): it would block a worker"):
                await refused
        assert await run.status() is Status.PENDING

    run_async(app, use)


@pytest.mark.parametrize(
    ("call", "call_name"),
    [
        ("aio.enqueue(clients.echoes, 1)", "enqueue"),
        ("aio.cancel(clients.echoes, unique_key='k')", "cancel"),
        ("aio.cancel_all(clients.echoes)", "cancel_all"),
        ("aio.cancel_run(clients.app, '00000000-0000-0000-0000-000000000000')", "Run.cancel"),
        ("aio.schedule(clients.echoes, '@daily', 1)", "schedule"),
        ("aio.unschedule(clients.echoes)", "unschedule"),
        ("aio.pause(clients.app, 'default')", "pause"),
        ("aio.resume(clients.app, 'default')", "resume"),
        ("aio.redrive(clients.app, 'dead')", "redrive"),
        ("aio.discard(clients.app, 'dead')", "discard"),
        ("aio.release_quarantined(clients.app)", "release_quarantined"),
        ("aio.migrate(clients.app)", "migrate"),
        ("aio.sync(clients.app)", "sync"),
    ],
)
def test_calls_while_an_app_is_imported_are_refused(tmp_path: Path, call: str, call_name: str) -> None:
    (tmp_path / "eager.py").write_text(
        f"import asyncio\nfrom apps import clients\nfrom underway import aio\nasyncio.run({call})\n"
    )
    with pytest.raises(ImportSideEffect, match=f"^{call_name} was called while"):
        load(f"{tmp_path / 'eager.py'}:app")


def test_a_missing_database_or_schema_is_reported(app: Underway, empty_database: str) -> None:
    async def use() -> None:
        app.database.named = None
        with pytest.raises(NoDatabase):
            await aio.enqueue(clients.echoes, 1)
        app.database.named = empty_database
        with pytest.raises(SchemaMissing):
            await aio.enqueue(clients.echoes, 1)
        app.database.named = "postgresql://me@localhost:1/nowhere"
        with pytest.raises(psycopg.OperationalError):
            await aio.enqueue(clients.echoes, 1)

    run_async(app, use)
