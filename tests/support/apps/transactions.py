"""Steps that write through `cx.tx`. Committed effects are rows of the table `effect`."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from underway import Context, Done, Fail, Retry, RetryPolicy, To, Underway
from underway.definition.options import StepOptions

app = Underway()

TABLES = """
    create table effect (run uuid, step text, number int, attempt int);
    create table parent (id int primary key);
    create table child (id int, parent int references parent deferrable initially deferred);
    create table counter (id int primary key, value int not null default 0);
    insert into counter select generate_series(1, 10);
    create function cut_the_connection() returns trigger language plpgsql as $$
        begin
            perform pg_terminate_backend(pg_backend_pid());
            return null;
        end
    $$;
    create table cutting (id int);
    create constraint trigger cut after insert on cutting deferrable initially deferred
        for each row execute function cut_the_connection();
"""


@dataclass
class Order:
    """The action, and a folder in which step and test synchronize."""

    action: str
    number: int = 0
    folder: str = ""


Action = Callable[[Context, Order], Any]
actions: dict[str, Action] = {}
# Actions that fail the attempt, with a part of the expected error.
failures: dict[str, str] = {}


def action(function: Action) -> Action:
    actions[function.__name__] = function
    return function


def failure(text: str) -> Callable[[Action], Action]:
    def register(function: Action) -> Action:
        failures[function.__name__] = text
        return action(function)

    return register


def write(cx: Context, order: Order) -> None:
    cx.tx.execute("insert into effect values (%s, %s, %s, %s)", [cx.run_id, cx.step, order.number, cx.attempt])


def another_connection() -> psycopg.Connection[Any]:
    return psycopg.connect(os.environ["UNDERWAY_DATABASE_URL"], autocommit=True)


def meet(order: Order) -> None:
    """Report that the step has started, and wait for the test."""
    Path(order.folder, "here").write_text(str(os.getpid()))
    while not Path(order.folder, "go").exists():
        time.sleep(0.005)


# The jobs


def do(cx: Context, order: Order) -> Done[Any]:
    return To.done(actions[order.action](cx, order))


def do_in_the_end(cx: Context, order: Order) -> Done[Any]:
    """At the first attempt only; the second attempt writes what the first should have written."""
    if cx.attempt == 1:
        return To.done(actions[order.action](cx, order))
    write(cx, order)
    return To.done("survived")


def first(cx: Context, order: Order) -> To[Order]:
    write(cx, order)
    actions[order.action](cx, order)
    return To.next(order)


def last(cx: Context, order: Order) -> Done[int]:
    write(cx, order)
    return To.done(order.number)


def interrupted(cx: Context, order: Order) -> Done:
    try:
        cx.tx.execute("update counter set value = value + 1 where id = 1")
        with cx.tx.transaction(), cx.tx.cursor() as cursor:
            cursor.execute("select pg_sleep(600)")
    finally:
        Path(order.folder, "cleaned").touch()
    return To.done()


def child(cx: Context, number: int) -> Done[int]:
    return To.done(number)


quick = RetryPolicy(max_attempts=3, initial_interval=timedelta(milliseconds=20), max_interval=timedelta(seconds=0.1))
usual: StepOptions = {"retry": quick}

once = app.job("once").step(do, retry=RetryPolicy(max_attempts=1))
again = app.job("again").step(do_in_the_end, **usual)
pairs = app.job("pairs").step(first, **usual).step(last, **usual)
short = app.job("short").step(interrupted, timeout=timedelta(seconds=0.5), retry=RetryPolicy(max_attempts=1))
leased = app.job("leased").step(do_in_the_end, retry=quick, lease=timedelta(seconds=1))
patient = app.job("patient").step(do, retry=quick)
children = app.job("children").step(child, **usual)


# Actions that hand over


@action
def nothing(cx: Context, order: Order) -> None:
    pass


@action
def write_one(cx: Context, order: Order) -> int:
    write(cx, order)
    return order.number


@action
def backend(cx: Context, order: Order) -> list[Any]:
    """The server process and the session settings that a step sees."""
    settings = cx.tx.execute("select current_setting('search_path'), current_setting('work_mem')").fetchone()
    assert type(settings) is tuple
    drawn = False
    with contextlib.suppress(psycopg.errors.ObjectNotInPrerequisiteState), cx.tx.transaction():
        drawn = cx.tx.execute("select lastval()").fetchone() is not None
    return [cx.tx.info.backend_pid, os.getpid(), cx.tx.prepare_threshold, *settings, drawn]


@action
def change_session(cx: Context, order: Order) -> list[Any]:
    pid = cx.tx.info.backend_pid
    cx.tx.execute("set search_path to nowhere; set work_mem to '1MB'; create temp table leftover (id int)")
    cx.tx.execute("select nextval('underway.token')")
    cx.tx.execute("select pg_advisory_lock(7)")
    cx.tx.row_factory = dict_row  # type: ignore[assignment]
    cx.tx.prepare_threshold = 0
    cx.tx.execute("select 1")
    return [pid, os.getpid()]


@action
def isolation(cx: Context, order: Order) -> str:
    row = cx.tx.execute("show transaction_isolation").fetchone()
    write(cx, order)
    assert row is not None
    return str(row[0])


@action
def serializable(cx: Context, order: Order) -> str:
    cx.tx.execute("set transaction isolation level serializable")
    return str(isolation(cx, order))


@action
def repeatable_for_long(cx: Context, order: Order) -> str:
    """Run for longer than a renewal period, while it reports progress."""
    cx.tx.execute("set transaction isolation level repeatable read")
    cx.tx.execute("select * from counter")
    for done in range(8):
        cx.progress(done, 8)
        time.sleep(0.1)
    return str(isolation(cx, order))


@action
def take_long(cx: Context, order: Order) -> int:
    write(cx, order)
    time.sleep(1)
    return order.number


@action
def take_long_all_the_same(cx: Context, order: Order) -> int:
    cx.tx.execute("set local transaction_timeout = 0")
    return int(take_long(cx, order))


@action
def write_in_threads(cx: Context, order: Order) -> int:
    """Several threads use cx.tx at once, for the first time."""
    together = threading.Barrier(4)

    def one(_number: int) -> None:
        together.wait()
        write(cx, order)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(4)))
    return order.number


@action
def enqueue(cx: Context, order: Order) -> int:
    write(cx, order)
    cx.enqueue(children, 1)
    children.enqueue(2, conn=cx.tx)
    children.enqueue_many([3, 4], conn=cx.tx)
    return order.number


@action
def recover(cx: Context, order: Order) -> int:
    write(cx, order)
    try:
        with cx.tx.transaction():
            write(cx, order)
            cx.tx.execute("select 1 / 0")
    except psycopg.errors.DivisionByZero:
        pass
    return order.number


@action
def count_connections(cx: Context, order: Order) -> int:
    with another_connection() as other:
        row = other.execute(
            "select count(*) from pg_stat_activity"
            " where datname = current_database() and application_name like 'underway%'"
        ).fetchone()
    assert row is not None
    return int(row[0])


# Failed attempts


kept: list[psycopg.Connection[Any]] = []
kept_contexts: list[Context] = []


@action
def keep_connection(cx: Context, order: Order) -> int:
    write(cx, order)
    kept.append(cx.tx)
    kept_contexts.append(cx)
    return order.number


@failure("this connection was lent to an attempt that has ended")
def use_what_was_kept(cx: Context, order: Order) -> None:
    kept[0].execute("insert into effect values (%s, %s, %s, %s)", [cx.run_id, cx.step, order.number, cx.attempt])


@failure("this connection was lent to an attempt that has ended")
def use_what_was_kept_beside_its_own(cx: Context, order: Order) -> None:
    write(cx, order)
    use_what_was_kept(cx, order)


@failure("cx.tx belongs to an attempt that has ended")
def use_an_old_context(cx: Context, order: Order) -> None:
    write(kept_contexts[0], order)


@failure("duplicate key value violates unique constraint")
def violate_unique(cx: Context, order: Order) -> None:
    write(cx, order)
    cx.tx.execute("insert into counter values (1)")


@failure("violates foreign key constraint")
def violate_deferred(cx: Context, order: Order) -> int:
    """A violation that is found at COMMIT."""
    write(cx, order)
    cx.tx.execute("insert into child values (1, 1)")
    return order.number


@failure("deadlock detected")
def deadlock(cx: Context, order: Order) -> None:
    write(cx, order)
    cx.tx.execute("set local deadlock_timeout = '10ms'")
    cx.tx.execute("update counter set value = 1 where id = 2")
    with another_connection() as other, other.transaction():
        other.execute("set local deadlock_timeout = '10s'")
        other.execute("update counter set value = 1 where id = 3")
        waiting = threading.Thread(target=other.execute, args=["update counter set value = 1 where id = 2"])
        waiting.start()
        try:
            cx.tx.execute("update counter set value = 1 where id = 3")
        finally:
            # The locks are released when the step ends, not earlier.
            other.cancel()
            waiting.join()


@failure("could not serialize access due to concurrent update")
def fail_to_serialize(cx: Context, order: Order) -> None:
    cx.tx.execute("set transaction isolation level repeatable read")
    write(cx, order)
    with another_connection() as other:
        other.execute("update counter set value = value + 1 where id = 4")
    cx.tx.execute("update counter set value = value + 1 where id = 4")


@failure("could not serialize access due to read/write dependencies")
def fail_to_serialize_at_commit(cx: Context, order: Order) -> int:
    cx.tx.execute("set transaction isolation level serializable")
    write(cx, order)
    cx.tx.execute("select sum(value) from counter")
    with another_connection() as other, other.transaction():
        other.execute("set transaction isolation level serializable")
        other.execute("select count(*) from effect")
        other.execute("update counter set value = value + 1 where id = 5")
    return order.number


@failure("a PostgreSQL error aborted cx.tx")
def swallow(cx: Context, order: Order) -> int:
    write(cx, order)
    with contextlib.suppress(psycopg.Error):
        cx.tx.execute("select 1 / 0")
    return order.number


@failure("ValueError: after writing")
def raise_something(cx: Context, order: Order) -> None:
    enqueue(cx, order)
    raise ValueError("after writing")


@failure("Fail: for good")
def raise_fail(cx: Context, order: Order) -> None:
    write(cx, order)
    raise Fail("for good")


@failure("Retry: later")
def raise_retry(cx: Context, order: Order) -> None:
    write(cx, order)
    raise Retry("later")


@failure("SystemExit")
def raise_exit(cx: Context, order: Order) -> None:
    write(cx, order)
    raise SystemExit(0)


@failure("PayloadError")
def return_too_much(cx: Context, order: Order) -> str:
    write(cx, order)
    return "x" * (9 << 20)


@failure("PayloadError")
def return_nonsense(cx: Context, order: Order) -> Any:
    write(cx, order)
    return object()


@failure("the step has ended the transaction of cx.tx")
def roll_back(cx: Context, order: Order) -> int:
    write(cx, order)
    cx.tx.execute("rollback")
    return order.number


@failure("the step has ended the transaction of cx.tx")
def roll_back_and_begin(cx: Context, order: Order) -> int:
    cx.tx.execute("rollback")
    cx.tx.execute("begin")
    write(cx, order)
    return order.number


@failure("the step has ended the transaction of cx.tx")
def commit(cx: Context, order: Order) -> int:
    cx.tx.execute("commit")
    cx.enqueue(children, 1)
    return order.number


@failure("the step has ended the transaction of cx.tx")
def commit_and_go_on(cx: Context, order: Order) -> int:
    """The driver begins a new transaction by itself."""
    cx.tx.execute("commit")
    write(cx, order)
    return order.number


@failure("the step has ended the transaction of cx.tx")
def commit_and_begin(cx: Context, order: Order) -> int:
    cx.tx.execute("commit")
    cx.tx.execute("begin")
    write(cx, order)
    return order.number


@failure("the step has ended the transaction of cx.tx")
def commit_and_chain(cx: Context, order: Order) -> int:
    cx.tx.execute("commit and chain")
    write(cx, order)
    return order.number


@failure("return from the step, and it is committed with its hand-over")
def call_commit(cx: Context, order: Order) -> None:
    write(cx, order)
    cx.tx.commit()


@failure("raise an exception, and all of it is rolled back")
def call_rollback(cx: Context, order: Order) -> None:
    write(cx, order)
    cx.tx.rollback()


@failure("return from the step, and it is committed with its hand-over")
def use_as_context_manager(cx: Context, order: Order) -> None:
    with cx.tx:
        write(cx, order)


@failure("cx.tx was closed")
def close(cx: Context, order: Order) -> int:
    write(cx, order)
    cx.tx.close()
    return order.number


unread: list[Iterator[Any]] = []


@failure("cx.tx is still busy")
def leave_unread(cx: Context, order: Order) -> int:
    write(cx, order)
    rows = cx.tx.cursor().stream("select generate_series(1, 1000000)")
    next(rows)
    unread.append(rows)
    return order.number


@failure("terminating connection due to administrator command")
def lose_connection(cx: Context, order: Order) -> int:
    """Its session is terminated just before the COMMIT."""
    write(cx, order)
    with another_connection() as other:
        other.execute("select pg_terminate_backend(%s, 5000)", [cx.tx.info.backend_pid])
    return order.number


@failure("terminating connection due to administrator command")
def lose_connection_in_commit(cx: Context, order: Order) -> int:
    write(cx, order)
    cx.tx.execute("insert into cutting values (1)")
    return order.number


# Actions with an event of the test


@action
def wait_in_python(cx: Context, order: Order) -> int:
    write(cx, order)
    meet(order)
    return order.number


@action
def meet_only(cx: Context, order: Order) -> int:
    meet(order)
    Path(order.folder, "gone").touch()
    return order.number


@action
def wait_in_postgres(cx: Context, order: Order) -> None:
    write(cx, order)
    cx.tx.execute("update counter set value = value + 1 where id = 6")
    Path(order.folder, "here").write_text(str(os.getpid()))
    cx.tx.execute("select pg_sleep(600)")


@action
def tell_pid(cx: Context, order: Order) -> int:
    if cx.step == "do":
        write(cx, order)
    Path(order.folder, "here").write_text(str(os.getpid()))
    return order.number
