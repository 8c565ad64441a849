"""underway.testing: the tools for users' tests."""

import asyncio
import contextvars
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from db import insert, insert_held, value
from psycopg.conninfo import conninfo_to_dict

from underway import (
    Context,
    Done,
    Fail,
    InvalidOption,
    JobDefinitionError,
    NoDatabase,
    PayloadError,
    Retry,
    RetryPolicy,
    RunCancelled,
    RunFailed,
    SchemaMissing,
    Status,
    To,
    Underway,
    UnderwayError,
    aio,
    testing,
)
from underway.testing import TemporaryPostgres, advance, drain, run_inline, using_database

Connection = psycopg.Connection[Any]

HOUR = timedelta(hours=1)

app = Underway()


@dataclass
class Order:
    id: int
    placed_at: datetime | None = None


@dataclass
class Receipt:
    order: Order
    key: str


MIDNIGHT = datetime(2026, 1, 1, tzinfo=UTC)
made_states: list[object] = []


def render(cx: Context, order: Order) -> To[Receipt]:
    cx.progress(1, 2)
    cx.progress(2, 2, "rendered")
    return To.next(Receipt(order, f"{order.id}.pdf"), delay=timedelta(seconds=order.id))


async def send(cx: Context, receipt: Receipt) -> Done[Receipt]:
    await asyncio.sleep(0)
    return To.done(receipt)


receipts = app.job("receipts").step(render).step(send, keep=HOUR)


class Busy(Retry):
    def __init__(self) -> None:  # does not call Retry's own
        self.lines = 3


def fail_twice(cx: Context, how: str) -> Done[int]:
    if cx.attempt <= 2:
        if how == "after":
            raise Retry("not yet", after=timedelta(minutes=7))
        if how == "for ever":
            raise Retry(after=timedelta.max)
        if how == "seconds":
            raise Retry(after=7)  # type: ignore[arg-type]
        if how == "of the user's":
            raise Busy
        if how == "fail":
            raise Fail("never")
        if how == "exit":
            sys.exit(1)
        raise ValueError("oh")
    return To.done(cx.attempt)


flaky = app.job("flaky").step(
    fail_twice, retry=RetryPolicy(max_attempts=3, initial_interval=timedelta(seconds=10), jitter=0)
)


def hand_over_nonsense(cx: Context, kind: str) -> Done[Order]:
    not_a_number: Any = float("nan")
    wrong: dict[str, Any] = {"type": To.done("no order"), "nan": To.done(Order(not_a_number)), "nothing": None}
    return wrong[kind]  # type: ignore[no-any-return]


nonsense = app.job("nonsense").step(hand_over_nonsense, retry=RetryPolicy(max_attempts=1))


def spawn(cx: Context, number: int) -> Done[str]:
    if cx.attempt == 1:
        cx.enqueue(receipts, Order(0))
        raise ValueError("this attempt's runs are not enqueued")
    return To.done(str(cx.enqueue(receipts, Order(number)).id))


spawning = app.job("spawning").step(spawn)


def write(cx: Context, how: str) -> Done[int]:
    cx.tx.execute("insert into written values (%s)", [cx.attempt])
    if how == "fail once" and cx.attempt == 1:
        raise ValueError("and what was written is gone")
    if how == "continue after an error":
        with pytest.raises(psycopg.errors.DivisionByZero):
            cx.tx.execute("select 1 / 0")
    return To.done(cx.attempt)


writing = app.job("writing").step(write, retry=RetryPolicy(max_attempts=2))


def make_state() -> object:
    made_states.append(object())
    return made_states[-1]


def with_state(cx: Context[object]) -> To[None]:
    assert cx.state is made_states[-1]
    return To.next(None)


def with_the_same_state(cx: Context[object]) -> Done:
    assert cx.state is made_states[-1]
    return To.done()


stateful = app.job("stateful", state=make_state).step(with_state).step(with_the_same_state)


def interrupted(cx: Context, how: str) -> Done:
    if how == "Ctrl-C":
        raise KeyboardInterrupt
    pytest.fail("a test's own verdict")


stopped = app.job("stopped").step(interrupted)


def customer(cx: Context, customer_id: str) -> Done[str]:
    return To.done(customer_id)


def customer_of(cx: Context, order: dict[str, str]) -> Done[str]:
    return To.done(order["id"])


keyed = app.job("keyed").step(customer, concurrency_key="one")
unkeyed_input = app.job("unkeyed-input").step(customer_of, name="first", unique_key="{id}")


def again(cx: Context, number: int) -> Done:
    cx.enqueue(endless, number + 1)
    return To.done()


endless = app.job("endless").step(again)


def cancel_itself(cx: Context) -> Done:
    with psycopg.connect(app.database.url or "", autocommit=True) as connection:
        connection.execute("select underway.cancel(%s)", [cx.run_id])
    return To.done()


suicidal = app.job("suicidal").step(cancel_itself)


def ask_slot(cx: Context) -> Done[str]:
    return To.done(str(cx.scheduled_at))


daily = app.job("daily").step(ask_slot)


@pytest.fixture
def bound(database: str) -> Iterator[Underway]:
    with using_database(app, database):
        yield app


# run_inline


def test_values_are_encoded_and_decoded_as_in_a_worker() -> None:
    run = run_inline(receipts, Order(7, MIDNIGHT))
    assert run.status is Status.SUCCEEDED
    assert run.result() == Receipt(Order(7, MIDNIGHT), "7.pdf")
    assert [(a.step, a.number, a.outcome, a.error, a.delay) for a in run.attempts] == [
        ("render", 1, "succeeded", None, timedelta(seconds=7)),
        ("send", 1, "succeeded", None, timedelta(0)),
    ]
    assert run.progress == [{"done": 1, "total": 2, "note": ""}, {"done": 2, "total": 2, "note": "rendered"}]


def test_a_value_that_could_not_be_enqueued_is_refused() -> None:
    wrong: Any = receipts
    with pytest.raises(PayloadError, match="Order"):
        run_inline(wrong, "no order")
    with pytest.raises(PayloadError, match="needs the field id"):
        run_inline(unkeyed_input, {})
    unfinished: Any = Underway().job("unfinished").step(render)
    with pytest.raises(JobDefinitionError, match="has no end"):
        run_inline(unfinished, Order(1))


@pytest.mark.parametrize(
    ("how", "outcomes", "delays"),
    [
        ("raise", ["failed", "failed", "succeeded"], [10, 20, 0]),
        ("exit", ["failed", "failed", "succeeded"], [10, 20, 0]),
        ("after", ["failed", "failed", "succeeded"], [420, 420, 0]),
        # Up to the limits of Postgres.
        ("for ever", ["failed", "failed", "succeeded"], [365_000 * 86_400, 365_000 * 86_400, 0]),
        ("seconds", ["failed", "failed", "succeeded"], [10, 20, 0]),
        ("of the user's", ["failed", "failed", "succeeded"], [10, 20, 0]),
        ("fail", ["failed"], [0]),
    ],
)
def test_failures_are_retried_by_the_policy_without_waiting(how: str, outcomes: list[str], delays: list[int]) -> None:
    run = run_inline(flaky, how)
    assert [attempt.outcome for attempt in run.attempts] == outcomes
    assert [attempt.number for attempt in run.attempts] == list(range(1, len(outcomes) + 1))
    assert [attempt.delay.total_seconds() for attempt in run.attempts] == delays
    if how == "fail":
        assert run.status is Status.FAILED
        with pytest.raises(RunFailed, match=r"(?s)Traceback.*Fail: never"):
            run.result()
    else:
        assert run.result() == 3


@pytest.mark.parametrize(
    ("kind", "message"), [("type", "PayloadError"), ("nan", "PayloadError"), ("nothing", "return To.next")]
)
def test_an_invalid_hand_over_is_a_failed_attempt(kind: str, message: str) -> None:
    run = run_inline(nonsense, kind)
    assert run.status is Status.FAILED
    assert message in (run.error or "")


def test_enqueued_runs_are_listed() -> None:
    run = run_inline(spawning, 5)
    (child,) = run.enqueued
    assert (str(child.id), child.job, child.value) == (run.result(), "receipts", Order(5))


def test_without_a_connection_there_is_no_transaction() -> None:
    run = run_inline(writing, "succeed")
    assert run.status is Status.FAILED
    assert "InsideStep: cx.tx has no database here" in (run.error or "")
    assert "run_inline(job, value, conn=connection)" in (run.error or "")


@pytest.mark.parametrize("autocommit", [False, True])
def test_a_failed_attempt_leaves_nothing_in_the_callers_transaction(database: str, autocommit: bool) -> None:
    with psycopg.connect(database, autocommit=True) as other:
        other.execute("create table written (attempt int)")
        with psycopg.connect(database, autocommit=autocommit) as conn:
            assert run_inline(writing, "fail once", conn=conn).result() == 2
            assert conn.execute("select attempt from written").fetchall() == [(2,)]
            assert value(other, "select count(*) from written") == (1 if autocommit else 0)
            if not autocommit:
                conn.rollback()
        assert value(other, "select count(*) from written") == (1 if autocommit else 0)


def test_an_aborted_transaction_is_a_failed_attempt(connection: Connection) -> None:
    connection.execute("create table written (attempt int)")
    run = run_inline(writing, "continue after an error", conn=connection)
    assert [attempt.outcome for attempt in run.attempts] == ["failed", "failed"]
    assert "aborted cx.tx" in (run.error or "")
    assert value(connection, "select count(*) from written") == 0


def test_state_is_created_once_for_a_run() -> None:
    before = len(made_states)
    assert run_inline(stateful).status is Status.SUCCEEDED
    assert len(made_states) == before + 1


@pytest.mark.parametrize(("how", "error"), [("Ctrl-C", KeyboardInterrupt), ("fail", pytest.fail.Exception)])
def test_exceptions_meant_for_the_test_runner_are_not_caught(how: str, error: type[BaseException]) -> None:
    with pytest.raises(error):
        run_inline(stopped, how)


def test_calling_it_in_a_coroutine_raises_with_a_hint(bound: Underway) -> None:
    async def main() -> None:
        for call in (lambda: run_inline(receipts, Order(0)), lambda: drain(app)):
            with pytest.raises(UnderwayError, match=r"await asyncio.to_thread\((run_inline|drain), "):
                call()
        receipt = await asyncio.to_thread(run_inline, receipts, Order(1))
        assert receipt.status is Status.SUCCEEDED

    asyncio.run(main())


def test_a_test_may_enqueue_again_after_a_run() -> None:
    """The step that has ended must not count as the current one."""
    run_inline(flaky, "fail")
    with pytest.raises(NoDatabase):
        flaky.enqueue("raise")


# drain


def test_drain_uses_the_real_statements(bound: Underway, connection: Connection) -> None:
    run = receipts.enqueue(Order(0, MIDNIGHT))
    assert drain(app) == 2
    assert run.result() == Receipt(Order(0, MIDNIGHT), "0.pdf")
    assert [(a.step, a.outcome) for a in run.attempts()] == [("render", "succeeded"), ("send", "succeeded")]
    assert value(connection, "select keep from underway.finished_run") == HOUR
    assert drain(app) == 0


def test_runs_that_are_not_due_stay(bound: Underway, connection: Connection) -> None:
    run = flaky.enqueue("raise")
    later = flaky.enqueue("fail", delay=HOUR)
    for expected in (1, 0):
        assert drain(app) == expected
    assert (run.status(), later.status()) == (Status.WAITING, Status.WAITING)
    advance(connection, timedelta(seconds=11))
    assert drain(app) == 1
    advance(connection, timedelta(seconds=21))
    assert drain(app) == 1
    assert run.result() == 3
    advance(connection, HOUR)
    assert drain(app) == 1
    assert later.status() is Status.FAILED


def test_drain_can_be_limited_to_one_job(bound: Underway) -> None:
    run = spawning.enqueue(0)
    other = receipts.enqueue(Order(1))
    assert drain(spawning) == 1
    assert (run.status(), other.status()) == (Status.WAITING, Status.PENDING)


def test_children_are_drained_too(bound: Underway, connection: Connection) -> None:
    run = spawning.enqueue(0)
    drain(app)
    advance(connection, HOUR)
    assert drain(app) == 3
    child = app.get_run(run.result())
    assert child.result() == Receipt(Order(0), "0.pdf")


@pytest.mark.parametrize("how", ["succeed", "fail once", "continue after an error"])
def test_cx_tx_is_a_real_transaction(bound: Underway, connection: Connection, how: str) -> None:
    connection.execute("create table written (attempt int)")
    run = writing.enqueue(how)
    drain(app)
    advance(connection, HOUR)
    drain(app)
    expected = {"succeed": [(1,)], "fail once": [(2,)], "continue after an error": []}[how]
    assert connection.execute("select attempt from written").fetchall() == expected
    assert run.status() is (Status.SUCCEEDED if expected else Status.FAILED)


def test_runs_with_one_key_run_one_after_the_other(bound: Underway) -> None:
    all_of_them = keyed.enqueue_many(["a", "b", "c"])
    assert drain(app) == 3
    assert [run.result() for run in all_of_them] == ["a", "b", "c"]


def test_a_run_in_line_for_a_key_has_no_due_time(bound: Underway, connection: Connection) -> None:
    keyed.enqueue_many(["a", "b"])
    dues = "select due_at from underway.runs order by due_at nulls last"
    first, in_line = connection.execute(dues).fetchall()
    assert in_line == (None,)
    advance(connection, HOUR)
    assert connection.execute(dues).fetchall() == [(first[0] - HOUR,), (None,)]


def test_drain_is_bounded_and_leaves_the_rest(bound: Underway, connection: Connection) -> None:
    endless.enqueue(0)
    with pytest.raises(UnderwayError, match="drain has made 7 attempts, and there is still work"):
        drain(app, most=7)
    assert connection.execute("select state, input, releases, attempts from underway.run").fetchall() == [
        ("pending", 7, 1, 0)
    ]


def test_reaching_the_bound_exactly_is_not_an_error(bound: Underway) -> None:
    receipts.enqueue(Order(0))
    assert drain(app, most=2) == 2


def test_a_run_that_is_cancelled_while_it_runs_ends_as_cancelled(bound: Underway) -> None:
    run = suicidal.enqueue()
    assert drain(app) == 1
    with pytest.raises(RunCancelled):
        run.result()


def test_an_expired_lease_is_a_crash(bound: Underway, connection: Connection) -> None:
    run, _ = insert_held(connection, uuid4(), job="keyed", step="customer", input='"x"')
    assert drain(app) == 0
    advance(connection, 2 * HOUR)
    drain(app)
    advance(connection, HOUR)
    assert drain(app) == 1
    assert [a.outcome for a in app.get_run(run).attempts()] == ["lost", "succeeded"]


@pytest.mark.parametrize("what", ["app", "job"])
def test_jobs_and_queues_are_registered_as_by_a_supervisor(database: str, connection: Connection, what: str) -> None:
    fresh = Underway(database)
    fresh.queue("pdf", dead_letter="pdf-dead")
    job = fresh.job("labelled").step(fails_for_good, queue="pdf")
    with using_database(fresh, database):
        run = job.enqueue(1)
        drain(fresh if what == "app" else job)
        assert [letter.run for letter in fresh.dead_letters("pdf-dead")] == [run]
        connection.execute("select underway.enqueue('labelled', '2')")
        assert drain(fresh) == 1


def fails_for_good(cx: Context, n: int) -> Done:
    raise Fail("no")


def test_schedules_fire_when_they_are_due(bound: Underway, connection: Connection) -> None:
    slot = daily.schedule("@daily").next_at
    assert drain(app) == 0
    advance(connection, timedelta(days=1))
    assert drain(app) == 1
    assert connection.execute("select result from underway.finished_run").fetchall() == [
        (str(slot - timedelta(days=1)),)
    ]
    (after,) = app.schedules()
    assert after.next_at == slot


def test_finished_runs_are_removed_after_their_keep(bound: Underway, connection: Connection) -> None:
    receipts.enqueue(Order(0))
    drain(app)
    advance(connection, HOUR - timedelta(minutes=1))
    drain(app)
    assert value(connection, "select count(*) from underway.runs") == 1
    advance(connection, timedelta(minutes=2))
    drain(app)
    assert value(connection, "select count(*) from underway.runs") == 0
    assert value(connection, "select count(*) from underway.attempt") == 0


def test_a_locked_row_is_reported(
    bound: Underway, database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("underway.testing.drainer._LOCKED_SECONDS", 0.2)
    ready = threading.Event()

    def lock(cx: Context) -> Done:
        locker.execute("select from underway.run for update")
        ready.set()
        return To.done()

    locking_app = Underway(database)
    job = locking_app.job("locking").step(lock)
    job.enqueue()
    with psycopg.connect(database) as locker, pytest.raises(UnderwayError, match="locked by another transaction"):
        drain(locking_app)
    assert ready.is_set()
    locking_app.close()


def test_an_unreachable_database_raises_at_once(empty_database: str) -> None:
    with pytest.raises(NoDatabase):
        drain(app)
    with pytest.raises(SchemaMissing):
        drain(app, database=empty_database)
    with pytest.raises(psycopg.OperationalError):
        drain(app, database="host=127.0.0.1 port=1")


def test_context_variables_and_breakpoints_of_the_test_are_kept(bound: Underway) -> None:
    seen: list[tuple[str, int]] = []
    variable = contextvars.ContextVar("variable", default="unset")
    local = Underway(app.database.url)

    def look(cx: Context) -> Done:
        seen.append((variable.get(), threading.get_ident()))
        return To.done()

    job = local.job("looking").step(look)
    variable.set("set")
    job.enqueue()
    drain(local)
    run_inline(job)
    local.close()
    assert seen == [("set", threading.get_ident())] * 2


# advance, using_database, the fixtures


def test_advance_moves_only_instants_that_are_waited_for(connection: Connection) -> None:
    def instants() -> dict[str, Any]:
        run = connection.execute(
            "select due_at, rank, lease_expires_at, created_at from underway.run order by id"
        ).fetchall()
        finished = connection.execute("select expires_at, finished_at from underway.finished_run").fetchall()
        schedule = connection.execute("select next_at from underway.schedule").fetchall()
        return {"run": run, "finished": finished, "schedule": schedule}

    insert_held(connection, uuid4())
    cancelled = insert(connection)
    connection.execute("select underway.cancel(%s)", [cancelled])
    connection.execute("insert into underway.schedule values ('j', 'n', '@daily', 'UTC', 'last', true, '1', now())")
    before = instants()
    advance(connection, HOUR)
    after = instants()
    ((due, rank, lease, created),) = before["run"]
    assert after["run"] == [(due - HOUR, rank - HOUR, lease - HOUR, created)]
    ((expires, finished),) = before["finished"]
    assert after["finished"] == [(expires - HOUR, finished)]
    assert after["schedule"] == [(before["schedule"][0][0] - HOUR,)]
    for wrong in (timedelta(seconds=-1), 5):
        with pytest.raises(InvalidOption, match="delta must be"):
            advance(connection, wrong)  # type: ignore[arg-type]


def test_a_run_in_line_for_a_key_stays_in_line(connection: Connection) -> None:
    insert(connection, state="waiting", due_at=None, concurrency_key="one")
    advance(connection, HOUR)
    assert value(connection, "select due_at is null from underway.run")


def test_using_database_restores_the_app(database: str) -> None:
    local = Underway("postgresql://nowhere")
    with using_database(local, database):
        assert local.database.url == database
        assert local.schedules() == []
    assert local.database.url == "postgresql://nowhere"


def test_async_connections_use_the_apps_current_database(underway_postgres: TemporaryPostgres) -> None:
    local = Underway("postgresql://nowhere")

    async def on_one_loop() -> None:
        for _ in range(2):
            with underway_postgres.database() as url, using_database(local, url):
                async with aio.connection(local) as own:
                    assert own.info.dbname == conninfo_to_dict(url)["dbname"]
        await aio.close(local)

    asyncio.run(on_one_loop())


def test_only_the_fixtures_need_pytest(tmp_path: Path) -> None:
    (tmp_path / "pytest.py").write_text("raise ModuleNotFoundError('none', name='pytest')\n")
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import underway.testing as t; "
        "print(t.run_inline, t.temporary_postgres); import underway.testing.fixtures"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert "run_inline" in done.stdout
    assert "the fixtures of underway.testing need pytest: pip install pytest" in done.stderr


def test_the_public_names() -> None:
    assert testing.__all__ == sorted(testing.__all__)
    for name in testing.__all__:
        assert getattr(testing, name).__doc__, name


CONFTEST = """
from underway.testing import run_inline
pytest_plugins = ["underway.testing"]
"""
TEST = """
import psycopg

def test_a_fresh_database(underway_database):
    with psycopg.connect(underway_database) as conn:
        assert conn.execute("select count(*) from underway.run").fetchone() == (0,)
        conn.execute("create table public.mine ()")

def test_another(underway_database, underway_postgres):
    with psycopg.connect(underway_database) as conn:
        conn.execute("create table public.mine ()")
    with underway_postgres.database(migrated=False) as url, psycopg.connect(url) as conn:
        assert conn.execute("select to_regnamespace('underway')").fetchone() == (None,)
"""


def test_the_plugin_in_a_separate_project(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With warnings as errors, and on a server that is not changed."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(TEST)
    monkeypatch.setenv("UNDERWAY_TEST_DATABASE_URL", server)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-W",
        "error",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
    ]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "2 passed" in output
    with psycopg.connect(server) as connection:
        query = "select count(*) from pg_database where datname like %s"
        assert value(connection, query, [f"underway_test_{process.pid}%"]) == 0
