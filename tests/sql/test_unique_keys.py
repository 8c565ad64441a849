"""unique_key: while a live run of the job has the key, an enqueue returns that run."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from apps import keyed
from db import Connection, row_of, value
from harness import Supervisor, eventually

from underway import InvalidOption, PayloadError, Run, Status, Underway

Bind = Callable[[Underway], Underway]


@pytest.fixture(autouse=True)
def app(bind: Bind) -> Underway:
    keyed.app.close()
    bound = bind(keyed.app)
    bound.sync()
    return bound


def in_sql(connection: Connection, job: str, payload: str, more: str = "") -> UUID:
    found: UUID = value(connection, f"select underway.enqueue(%s, %s::jsonb {more})", [job, payload])
    return found


def test_a_live_run_with_the_key_is_returned(connection: Connection, app: Underway) -> None:
    first = keyed.imports.enqueue({"account": 7, "n": 1})
    again = keyed.imports.enqueue({"account": 7, "n": 2})
    another = keyed.imports.enqueue({"account": 8})
    assert (first.created, again.created, another.created) == (True, False, True)
    assert again == first != another
    assert in_sql(connection, "imports", '{"account": 7}') == first.id
    assert value(connection, "select count(*) from underway.run") == 2
    row = row_of(connection, "run", str(first.id))
    assert row is not None
    assert (row["unique_key"], row["input"]["n"], row["state"]) == ("7", 1, "pending")
    assert app.get_run(first.id).created is False
    assert keyed.free.enqueue({}).created is True


def test_the_key_is_free_once_the_run_has_ended(connection: Connection) -> None:
    first = keyed.imports.enqueue({"account": 7})
    assert first.cancel()
    second = keyed.imports.enqueue({"account": 7})
    assert second.created
    assert second != first


def test_jobs_do_not_share_unique_keys(connection: Connection) -> None:
    runs = [keyed.imports.enqueue({"account": 7}), keyed.free.enqueue({}, unique_key="7")]
    assert [run.created for run in runs] == [True, True]


def test_a_unique_key_given_at_enqueue_in_python_and_sql(connection: Connection) -> None:
    first = keyed.free.enqueue({"a": 1}, unique_key="k{a}")
    assert not keyed.free.enqueue({"b": 1}, unique_key="k1").created
    assert in_sql(connection, "free", '{"b": 1}', ", unique_key => 'k1'") == first.id
    assert in_sql(connection, "free", '{"a": 1}', ", unique_key => 'k{a}'") == first.id
    assert in_sql(connection, "free", "{}", ", unique_key => 'other'") != first.id
    assert keyed.imports.enqueue({}, unique_key="instead of the template").created


def test_a_missing_field_is_refused_at_enqueue(connection: Connection) -> None:
    with pytest.raises(PayloadError, match="needs the field account"):
        keyed.imports.enqueue({"n": 1})
    with pytest.raises(PayloadError, match=r"value 1: the key '\{account\}' needs the field account"):
        keyed.imports.enqueue_many([{"account": 1}, {}])
    with pytest.raises(psycopg.Error, match="needs the field account"):
        in_sql(connection, "imports", "{}")
    for bad in ("{", "x" * 401):
        with pytest.raises(psycopg.Error) as refused:
            in_sql(connection, "free", "{}", f", unique_key => '{bad}'")
        assert refused.value.sqlstate in ("UW002", "UW003")
    assert value(connection, "select count(*) from underway.run") == 0


def test_in_bulk_each_value_gets_its_run(connection: Connection) -> None:
    live = keyed.imports.enqueue({"account": 3})
    accounts = [5, 3, 1, 5, 4, 1, *range(100, 4100)]
    runs = keyed.imports.enqueue_many({"account": account} for account in accounts)
    assert [run.created for run in runs[:7]] == [True, False, True, False, True, False, True]
    assert runs[1] == live
    assert (runs[3], runs[5]) == (runs[0], runs[2])
    stored = dict(connection.execute("select id, unique_key from underway.run").fetchall())
    assert [stored[run.id] for run in runs] == [str(account) for account in accounts]
    assert len(stored) == len(set(accounts))


def test_enqueue_is_part_of_the_callers_transaction(connection: Connection, database: str) -> None:
    enqueueing: list[Callable[[psycopg.Connection[Any]], object]] = [
        lambda caller: keyed.imports.enqueue_many([{"account": 1}, {"account": 2}], conn=caller),
        lambda caller: keyed.imports.enqueue({"account": 3}, conn=caller),
        lambda caller: keyed.free.enqueue_many([{}, {}], conn=caller),
    ]
    with psycopg.connect(database) as caller:
        for enqueue in enqueueing:
            enqueue(caller)  # also as the first statement of the transaction
            caller.rollback()
    assert value(connection, "select count(*) from underway.run") == 0


@pytest.mark.parametrize("by", ["python", "sql", "bulk"])
def test_sixteen_racing_sessions_create_one_run_per_key(database: str, connection: Connection, by: str) -> None:
    sessions, accounts = 16, list(range(15))
    barrier = threading.Barrier(sessions)

    def race(number: int) -> list[tuple[int, UUID, bool]]:
        with psycopg.connect(database, autocommit=True) as caller:
            order = sorted(accounts, key=lambda account: (account * 7 + number * 5) % 16)
            barrier.wait(20)
            if by == "bulk":
                runs = keyed.imports.enqueue_many(({"account": account} for account in order), conn=caller)
                return [(account, run.id, run.created) for account, run in zip(order, runs, strict=True)]
            made = []
            for account in order:
                if by == "sql":
                    made.append((account, in_sql(caller, "imports", f'{{"account": {account}}}'), False))
                else:
                    run = keyed.imports.enqueue({"account": account}, conn=caller)
                    made.append((account, run.id, run.created))
            return made

    with ThreadPoolExecutor(sessions) as pool:
        answers = [answer for made in pool.map(race, range(sessions)) for answer in made]
    by_account: dict[int, set[UUID]] = {}
    for account, run_id, _ in answers:
        by_account.setdefault(account, set()).add(run_id)
    assert {len(ids) for ids in by_account.values()} == {1}
    assert value(connection, "select count(*) from underway.run") == len(accounts)
    if by != "sql":
        creators = Counter(account for account, _, created in answers if created)
        assert creators == Counter(accounts)


def test_an_enqueue_returns_a_run_even_if_the_run_with_the_key_ends_meanwhile(
    database: str, connection: Connection
) -> None:
    """The returned run may just be ending, but an enqueue always returns one."""
    ended = threading.Event()

    def cancel_all() -> None:
        with psycopg.connect(database, autocommit=True) as caller:
            while not ended.is_set():
                caller.execute("delete from underway.run")

    canceller = threading.Thread(target=cancel_all)
    canceller.start()
    try:
        with psycopg.connect(database, autocommit=True) as caller:
            for _ in range(200):
                assert keyed.imports.enqueue({"account": 1}, conn=caller).id
                assert in_sql(caller, "imports", '{"account": 1}')
    finally:
        ended.set()
        canceller.join()


def test_an_enqueue_waits_for_an_open_transaction_with_the_key(database: str, connection: Connection) -> None:
    with ThreadPoolExecutor(1) as pool, psycopg.connect(database) as caller:
        first = keyed.imports.enqueue({"account": 1}, conn=caller)
        waiting = pool.submit(lambda: keyed.imports.enqueue({"account": 1}))
        blocked = (
            "select exists (select from pg_stat_activity "
            "where wait_event_type = 'Lock' and datname = current_database())"
        )
        eventually(lambda: value(connection, blocked))
        caller.commit()
        assert waiting.result(20) == first
        assert not waiting.result().created


def test_a_run_keeps_its_unique_key_through_its_steps(start_supervisor: Callable[..., Supervisor]) -> None:
    run: Run[Any] = keyed.same.enqueue({"account": 1}, unique_key="once", delay=timedelta(seconds=0.3))
    assert keyed.same.enqueue({"account": 1}, unique_key="once") == run
    start_supervisor("keyed", "--procs", "1")
    assert run.wait(20) is Status.SUCCEEDED
    assert keyed.same.enqueue({"account": 1}, unique_key="once").created


def test_cx_enqueue_refuses_a_job_with_a_unique_key() -> None:
    from underway.worker.logging_setup import PLAIN_LOGS
    from underway.worker.step_context import Services, StepContext

    attempt = StepContext(Services(keyed.app, None, None, None, PLAIN_LOGS), 1)  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match=r"job.enqueue\(value, conn=cx.tx\)"):
        attempt.spawn(keyed.imports, {"account": 1})
