"""The life of a run in SQL: claims, retries and ends, one statement at a time."""

import random
from datetime import timedelta
from uuid import UUID, uuid4

import psycopg
import pytest
from db import (
    AGES_AGO,
    IN_AN_HOUR,
    LANE,
    LANES,
    Connection,
    ago,
    claim,
    finish,
    go_on,
    insert,
    insert_held,
    row_of,
    value,
    with_store,
)

from underway.definition.manifest import Lane, Policy, Step
from underway.postgres import client_queries
from underway.postgres.supervisor_store import Store
from underway.postgres.transitions import AdvanceRun, Attempt
from underway.supervisor.tasks.task import Task
from underway.supervisor.tasks.verdict import Observation, decide

US = uuid4()
FAILED = Attempt("failed", "oh", started=ago(600))


def test_the_backoff_of_a_retry_starts_when_the_attempt_ends(any_database: str) -> None:
    """If it started at the run's creation or the attempt's start, it could be over before the attempt ends."""
    with psycopg.connect(any_database, autocommit=True) as connection:
        run, token = insert_held(connection, US, created_at=AGES_AGO, due_at=AGES_AGO, rank=AGES_AGO)
        back = go_on(
            run, token, step=LANE.step, payload=None, delay=1800.0, attempts=1, number=1,
            attempt=Attempt("failed", "oh", started=ago(600)),
        )  # fmt: skip

        async def fail(store: Store) -> None:
            assert token in await store.continue_([back], [])
            assert await store.promote(10) == 0

        before = value(connection, "select clock_timestamp()")
        with_store(any_database, fail, US)
        after = value(connection, "select clock_timestamp()")
        assert claim(any_database) == []
        row, attempt = row_of(connection, "run", run), row_of(connection, "attempt", run)
        assert row is not None
        assert attempt is not None
        assert (row["state"], row["attempts"], row["attempt_number"], row["input"]) == ("waiting", 1, 1, {"n": 1})
        ended_at = value(connection, "select due_at - interval '30 minutes' from underway.run")
        assert before <= ended_at <= after
        assert (attempt["outcome"], attempt["error"], attempt["attempt_number"]) == ("failed", "oh", 1)
        took = "select extract(epoch from finished_at - started_at)::float8 from underway.attempt"
        assert value(connection, took) >= 600
        connection.execute("update underway.run set due_at = due_at - interval '30 minutes'")
        assert with_store(any_database, lambda store: store.promote(10)) == 1
        (again,) = claim(any_database)
        assert (again.run, again.attempts, again.number) == (run, 1, 1)


def test_retries_are_spread() -> None:
    """A thousand runs that fail together must not be retried together."""
    rng, waits = random.Random(7), set()
    for number in range(1000):
        task = Task(
            run="run", token=number, lane=LANE, step=Step("step", policy=Policy()), input=b"", claimed_at=0.0,
            lease_deadline=60.0, number=3, attempts=3, crashes=0, releases=0,
        )  # fmt: skip
        back = decide(task, Observation.RETRY, FAILED, rng, None)
        assert isinstance(back, AdvanceRun)
        waits.add(back.delay)
    assert len(waits) == 1000
    assert 4 <= min(waits) < 4.1
    assert 7.9 < max(waits) <= 8


def test_attempts_are_listed_in_the_order_in_which_they_ended(database: str, connection: Connection) -> None:
    run = insert(connection)

    async def fail_twice(store: Store) -> None:
        for number in (1, 2):
            (claimed,) = await store.claim(LANES, 1, candidates=1, suspects=1)
            failed = Attempt("failed", f"oh {number}", started=ago(0.001))
            back = go_on(run, claimed.token, step=LANE.step, payload=None, number=number, ran_number=number,
                         attempts=number, attempt=failed)  # fmt: skip
            await store.continue_([back], [])
        await store.claim(LANES, 1, candidates=1, suspects=1)

    with_store(database, fail_twice, US)
    found = client_queries.attempts(connection, UUID(run))
    assert [(attempt[1], attempt[2], attempt[3]) for attempt in found] == [(1, "failed", "oh 1"), (2, "failed", "oh 2")]
    ends = connection.execute("select finished_at from underway.attempt order by attempt_number").fetchall()
    assert ends[0] < ends[1]
    assert client_queries.status(connection, UUID(run)) == "in_progress", "the third attempt has no row yet"


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_a_finished_run_is_not_claimed_again(any_database: str, state: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        run, token = insert_held(connection, US)
        if state == "cancelled":
            assert client_queries.cancel(connection, UUID(run))
        row = finish(run, token, state=state, attempt=Attempt(state, started=ago(1.0)))

        async def end(store: Store) -> None:
            assert await store.finish([row], []) == {token}
            assert await store.finish([row], []) == set()

        assert value(connection, "select count(*) from underway.attempt") == 0, (
            "an attempt is one row, written at its end"
        )
        with_store(any_database, end, US)
        assert client_queries.status(connection, UUID(run)) == state
        assert claim(any_database) == []
        query = "select attempt_number, outcome, finished_at > started_at from underway.attempt"
        assert connection.execute(query).fetchall() == [(1, state, True)]


def test_retention_counts_from_the_end_of_a_run(any_database: str) -> None:
    """Otherwise a run that still waits for its first attempt could be deleted. (Promise 1.)"""
    with psycopg.connect(any_database, autocommit=True) as connection:
        short = {"keep": timedelta(0), "created_at": AGES_AGO}
        live = [
            insert(connection, **short),
            insert(connection, state="waiting", due_at=IN_AN_HOUR, **short),
            insert(connection, state="waiting", due_at=AGES_AGO, attempts=2, **short),
            insert_held(connection, US, **short)[0],
        ]
        ended, token = insert_held(connection, US, **short)

        async def expire(store: Store) -> int:
            await store.finish([finish(ended, token)], [])
            return await store.expire(10)

        assert with_store(any_database, expire, US) == 1
        left = connection.execute("select id::text from underway.runs").fetchall()
        assert {run for (run,) in left} == set(live)


def test_each_queue_has_its_own_concurrency_keys(any_database: str) -> None:
    lanes = [Lane(queue, "job", "step") for queue in ("one", "two")]
    with psycopg.connect(any_database, autocommit=True) as connection:
        for lane in lanes * 2:
            insert(connection, queue=lane.queue, state="waiting", concurrency_key="key", concurrency_limit=1)
        with_store(any_database, lambda store: store.join_key_queue(10))
        holders = connection.execute("select queue from underway.run where state = 'pending' and holds_key order by 1")
        assert holders.fetchall() == [("one",), ("two",)]


def test_a_cancel_by_id_or_key_reads_no_other_run(connection: Connection) -> None:
    connection.execute(
        "insert into underway.run (id, job, step, queue, keep, due_at, rank, state, unique_key, input)"
        " select gen_random_uuid(), 'job', 'step', 'default', '1 day', now(), now(), 'pending', 'key ' || n, '{}'"
        " from generate_series(1, 5000) n"
    )
    connection.execute("analyze underway.run")
    reads = "select seq_scan, seq_tup_read from pg_stat_xact_user_tables where relid = 'underway.run'::regclass"
    for call in ("underway.cancel((select id from underway.run where unique_key = 'key 7' and job = 'job'))",
                 "underway.cancel_key('job', 'key 8')"):  # fmt: skip
        with connection.transaction():
            assert value(connection, f"select {call}::int") == 1
            assert connection.execute(reads).fetchall() == [(0, 0)]
