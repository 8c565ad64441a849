"""Claims, the promoter and the reaper against a real Postgres: order, limits, suspects, fencing tokens, locked rows."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import psycopg
import pytest
from db import (
    AGES_AGO,
    IN_AN_HOUR,
    LANE,
    LANES,
    POLICY,
    Connection,
    claim,
    finish,
    go_on,
    held_task,
    insert,
    insert_held,
    row_of,
    value,
    with_store,
)
from psycopg import sql

from underway.definition.manifest import Lane, Placement, Policy
from underway.definition.retry import LONGEST
from underway.postgres import client_queries
from underway.postgres.listener import Wakeup
from underway.postgres.reconnecting import ReconnectingConnection
from underway.postgres.supervisor_store import Claimed, Lanes, Renewal, Store
from underway.supervisor.loops import promote
from underway.supervisor.loops.renew import RenewLoop
from underway.supervisor.signals import Signals
from underway.supervisor.tasks.held import HeldTasks
from underway.supervisor.tasks.verdict import crash_delay


def ago(minutes: float) -> sql.SQL:
    """A rank or due time this many minutes ago."""
    return sql.SQL(f"clock_timestamp() - interval '{minutes} minutes'")


@pytest.fixture
def us() -> UUID:
    return uuid4()


# Order


def test_runs_are_claimed_in_the_order_of_their_rank(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        placed = {minutes: insert(connection, rank=ago(minutes)) for minutes in (3, 1, 5, 2, 4)}
    assert [run.run for run in claim(any_database)] == [placed[minutes] for minutes in (5, 4, 3, 2, 1)]


def test_a_claim_takes_the_oldest_of_its_candidates(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        placed = {minutes: insert(connection, rank=ago(minutes), crashes=int(minutes == 5)) for minutes in range(1, 9)}

    async def turns(store: Store) -> list[list[str]]:
        return [[run.run for run in await store.claim(LANES, 2, candidates=8, suspects=1)] for _ in range(4)]

    order = [[8, 7], [6, 5], [4, 3], [2, 1]]
    assert with_store(any_database, turns) == [[placed[minutes] for minutes in turn] for turn in order]


def test_the_oldest_rank_of_all_lanes_comes_first(any_database: str) -> None:
    lanes = [Lane("default", "a", "x"), Lane("default", "a", "y"), Lane("other", "b", "x")]
    with psycopg.connect(any_database, autocommit=True) as connection:
        for minutes in range(9):
            queue, job, step = lanes[minutes % 3]
            insert(connection, queue=queue, job=job, step=step, rank=ago(minutes))
    served = Lanes((lane, POLICY) for lane in lanes)
    claimed = [run.lane for _ in range(3) for run in claim(any_database, 3, lanes=served)]
    assert claimed == [lanes[minutes % 3] for minutes in reversed(range(9))]


def test_one_unit_of_priority_is_worth_one_minute_of_waiting(connection: Connection, database: str) -> None:
    def enqueue(priority: int, waited: float) -> UUID:
        with connection.transaction():
            run = value(connection, "select underway.enqueue('job', priority => %s)", [priority])
            connection.execute("update underway.run set rank = rank - %s where id = %s", [_minutes(waited), run])
        return UUID(str(run))

    with_store(database, _register)
    fresh_and_urgent = enqueue(priority=10, waited=0)
    ordinary = enqueue(priority=0, waited=0)
    old = enqueue(priority=0, waited=10.5)
    old_but_minor = enqueue(priority=-10, waited=9.5)
    order = [old, fresh_and_urgent, ordinary, old_but_minor]
    assert [run.run for run in claim(database)] == [str(run) for run in order]


def test_a_run_keeps_its_place_in_line_through_its_steps(database: str, connection: Connection, us: UUID) -> None:
    begun, token = insert_held(connection, us, due_at=ago(2), rank=ago(2))
    later = insert(connection, due_at=ago(1), rank=ago(1))

    async def hand_over(store: Store) -> None:
        await store.continue_([go_on(begun, token, step=LANE.step)], [])

    with_store(database, hand_over, us)
    assert [claimed.run for claimed in claim(database)] == [begun, later]


def test_a_delayed_run_ranks_by_when_it_is_due(database: str, connection: Connection, us: UUID) -> None:
    retried, token = insert_held(connection, us, due_at=ago(2), rank=ago(2))
    later = insert(connection, due_at=ago(1), rank=ago(1))

    async def back_off(store: Store) -> None:
        await store.continue_([go_on(retried, token, step=LANE.step, delay=0.001)], [])
        await asyncio.sleep(0.01)
        await store.promote(10)

    with_store(database, back_off, us)
    assert [claimed.run for claimed in claim(database)] == [later, retried]


def _minutes(number: float) -> timedelta:
    return timedelta(minutes=number)


async def _register(store: Store) -> None:
    await store.register_job("job", "step", Placement())


# Which runs are claimed


def test_runs_of_lanes_that_are_not_served_are_left_alone(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        unserved = [insert(connection, **{part: "unknown"}, rank=AGES_AGO) for part in ("queue", "job", "step")]
        known = insert(connection)
        before = [row_of(connection, "run", run) for run in unserved]
        assert [run.run for run in claim(any_database)] == [known]
        assert [row_of(connection, "run", run) for run in unserved] == before


def test_without_lanes_nothing_is_claimed(database: str, connection: Connection) -> None:
    insert(connection)
    assert claim(database, lanes=Lanes(())) == []


def test_a_claim_takes_no_more_than_it_asked_for(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        for crashes in [0] * 12 + [1] * 3:
            insert(connection, crashes=crashes)
    assert [len(claim(any_database, 5)) for _ in range(4)] == [5, 5, 3, 1]


def insert_sized(connection: Connection, *sizes: int) -> list[str]:
    """Insert runs with inputs of these sizes in bytes, the oldest first."""
    minutes = range(len(sizes), 0, -1)
    return [
        insert(connection, rank=ago(age), input=f'"{"x" * (size - 2)}"')
        for age, size in zip(minutes, sizes, strict=True)
    ]


@pytest.mark.parametrize(
    ("sizes", "size", "taken"),
    [
        pytest.param([10, 10, 10, 10], 30, 3, id="runs that fit together"),
        pytest.param([10, 10, 11, 1], 30, 2, id="none younger than a run that does not fit"),
        pytest.param([31, 10, 10], 30, 1, id="an oversized run alone"),
        pytest.param([10, 31, 10], 30, 1, id="an oversized run not with others"),
        pytest.param([9, 9, 9], 0, 1, id="always at least one"),
    ],
)
def test_a_claim_is_bounded_by_the_bytes_of_its_inputs(
    any_database: str, sizes: list[int], size: int, taken: int
) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        placed = insert_sized(connection, *sizes)

    async def both(store: Store) -> list[list[str]]:
        first = await store.claim(LANES, 100, candidates=100, suspects=1, size=size)
        others = await store.claim(LANES, 100, candidates=100, suspects=1)  # the first claim left the others unlocked
        return [[run.run for run in claimed] for claimed in (first, others)]

    assert with_store(any_database, both) == [placed[:taken], placed[taken:]]


def test_locked_runs_do_not_count_in_a_claims_bytes(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection, psycopg.connect(any_database) as other_session:
        locked, *free = insert_sized(connection, 1000, 10, 10, 10)
        other_session.execute("select from underway.run where id = %s for update", [locked])

        async def bounded(store: Store) -> list[str]:
            return [run.run for run in await store.claim(LANES, 100, candidates=100, suspects=1, size=30)]

        assert with_store(any_database, bounded) == free


@pytest.mark.parametrize("suspects", [0, 1, 2])
def test_a_claim_takes_at_most_the_given_number_of_suspects(any_database: str, suspects: int) -> None:
    lanes = [Lane("default", "a", "x"), Lane("default", "b", "x")]
    with psycopg.connect(any_database, autocommit=True) as connection:
        for lane in lanes * 3:
            insert(connection, queue=lane.queue, job=lane.job, step=lane.step, crashes=1, rank=AGES_AGO)
            insert(connection, queue=lane.queue, job=lane.job, step=lane.step)
    claimed = claim(any_database, lanes=Lanes((lane, POLICY) for lane in lanes), suspects=suspects)
    assert sum(run.crashes > 0 for run in claimed) == suspects
    assert sum(run.crashes == 0 for run in claimed) == 6


def test_a_claim_returns_the_columns_of_its_row(any_database: str) -> None:
    policy = Policy(lease=timedelta(seconds=90), max_crashes=7)
    owner = uuid4()
    with psycopg.connect(any_database, autocommit=True) as connection:
        counters = {"attempt_number": 4, "attempts": 2, "crashes": 1, "releases": 3}
        slot = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
        more = {"priority": -5, "keep": timedelta(hours=30), "scheduled_at": slot, "input": '{"a": "ü"}'}
        run = insert(connection, **counters, **more)
        (claimed,) = claim(any_database, lanes=Lanes([(LANE, policy)]), owner=owner)
        row = row_of(connection, "run", run)
        assert row is not None
        assert claimed == (run, row["token"], LANE, *counters.values(), slot.timestamp(), '{"a": "ü"}'.encode(), False)
        assert (row["state"], row["owner"], row["max_crashes"]) == ("in_progress", str(owner), 7)
        left = "select extract(epoch from lease_expires_at - clock_timestamp())::float8 from underway.run"
        assert 30 < value(connection, left) <= 90


def test_a_delayed_run_is_claimed_only_after_it_was_promoted(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        due = insert(connection, state="waiting", due_at=AGES_AGO)
        not_due = insert(connection, state="waiting", due_at=IN_AN_HOUR)
        assert claim(any_database) == []
        assert with_store(any_database, lambda store: store.promote(100)) == 1
        assert [run.run for run in claim(any_database)] == [due]
        row = row_of(connection, "run", not_due)
        assert row is not None
        assert row["state"] == "waiting"


def test_promotion_is_bounded_and_takes_the_longest_due_first(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        for minutes in (1, 2, 3, 4, 5):
            insert(connection, state="waiting", due_at=ago(minutes), rank=ago(minutes), attempt_number=minutes)
        assert with_store(any_database, lambda store: store.promote(2)) == 2
        promoted = connection.execute(
            "select attempt_number from underway.run where state = 'pending' order by attempt_number"
        )
        assert [row[0] for row in promoted] == [4, 5]


def test_the_promoter_knows_how_long_to_sleep(database: str, connection: Connection) -> None:
    seconds = with_store(database, lambda store: store.seconds_until_due())
    assert seconds is None
    insert(connection, state="waiting", due_at=IN_AN_HOUR)
    insert(connection, state="pending", due_at=AGES_AGO)
    seconds = with_store(database, lambda store: store.seconds_until_due())
    assert seconds is not None
    assert 3000 < seconds <= 3600


def test_a_wake_up_during_a_turn_of_the_promoter_is_not_lost(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(The run waited for the next poll.)"""
    monkeypatch.setattr(promote, "_POLL_SECONDS", 1000)

    async def play(store: Store) -> None:
        promoted, swept = asyncio.Event(), asyncio.Event()
        sweep_keys = store.sweep_keys

        async def swept_meanwhile(after: tuple[str, str], limit: int) -> tuple[str, str]:
            found = await sweep_keys(after, limit)
            if not swept.is_set():
                swept.set()
                insert(connection, state="waiting", due_at=ago(0))
                promoting.wake()  # as its notification does
            return found

        monkeypatch.setattr(store, "sweep_keys", swept_meanwhile)
        signals = Signals()
        signals.run_pending.connect(promoted.set)
        promoting = promote.PromoteLoop(store, signals)
        loop = asyncio.create_task(promoting.run())
        try:
            async with asyncio.timeout(20):
                await promoted.wait()
        finally:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)

    with_store(database, play)
    assert value(connection, "select state from underway.run") == "pending"


def test_a_promotion_from_the_cursor_finds_runs_that_become_due_later(
    any_database: str, any_connection: Connection
) -> None:
    async def turns(store: Store) -> None:
        assert await store.seconds_until_due() is None
        insert(any_connection, state="waiting", due_at=AGES_AGO)  # by a transaction that committed late
        insert(any_connection, state="waiting", due_at=ago(0))
        assert await store.promote(10, from_start=False) == 1
        assert await store.promote(10, from_start=False) == 0
        insert(any_connection, state="waiting", due_at=IN_AN_HOUR)
        seconds = await store.seconds_until_due(from_start=False)
        assert seconds is not None
        assert seconds > 3000
        insert(any_connection, state="waiting", due_at=ago(0))  # due before every run that was known
        assert await store.promote(10, from_start=False) == 1
        assert await store.promote(10) == 1

    with_store(any_database, turns)


# Tokens, and concurrent claims


def test_tokens_grow_and_are_never_reused(database: str, connection: Connection, us: UUID) -> None:
    run = insert(connection)
    seen: list[int] = []

    async def many_turns(store: Store) -> None:
        for turn in range(6):
            (claimed,) = await store.claim(LANES, 1, candidates=1, suspects=1)
            seen.append(claimed.token)
            if turn % 3 == 0:
                await store.continue_([go_on(run, claimed.token, step=LANE.step)], [])
            elif turn % 3 == 1:
                await store.release_unknown([])
            else:
                connection.execute("update underway.run set lease_expires_at = now() - interval '1 second'")
                await store.reap(10)
                connection.execute("update underway.run set due_at = now(), max_crashes = 100")
                await store.promote(10)

    with_store(database, many_turns, us)
    assert seen == sorted(set(seen))
    insert(connection)
    assert claim(database)[0].token > seen[-1]


@pytest.mark.parametrize("by", ["claim", "hand-over"])
def test_a_server_that_lost_the_last_tokens_does_not_reuse_them(database: str, connection: Connection, by: str) -> None:
    """A lagging standby was promoted, and tasks of this supervisor still run under the lost tokens."""
    insert(connection)

    async def fail_over() -> None:
        work, leases = ReconnectingConnection(database), ReconnectingConnection(database)
        store = Store(work, leases, uuid4(), "testhost")
        connection.execute("select setval('underway.token', 100)")
        (claimed,) = await store.claim(LANES, 1, candidates=1, suspects=1)
        last = claimed.token
        if by == "hand-over":
            last = (await store.continue_([go_on(claimed.run, claimed.token)], [], [POLICY]))[claimed.token] or 0
            assert last > claimed.token
        await work.close()
        await leases.close()
        connection.execute("select setval('underway.token', 5)")
        connection.execute("delete from underway.run")
        insert(connection)
        (claimed,) = await store.claim(LANES, 1, candidates=1, suspects=1)
        assert claimed.token > last
        await work.close()
        await leases.close()

    asyncio.run(fail_over())


def test_a_rolled_back_claim_consumes_its_tokens(database: str, connection: Connection) -> None:
    """The answer may have arrived, so the tokens must not be reused."""
    insert(connection)
    with psycopg.connect(database) as other:
        lost = value(other, "update underway.run set token = nextval('underway.token') returning token")
        other.rollback()
    assert claim(database)[0].token > lost


@pytest.mark.parametrize("claimers", [16])
def test_concurrent_claims_take_every_run_exactly_once(any_database: str, claimers: int) -> None:
    total = 4_000
    with psycopg.connect(any_database, autocommit=True) as connection:
        connection.execute(
            "insert into underway.run (id, job, step, queue, keep, due_at, rank, state, input) "
            "select gen_random_uuid(), 'job', 'step', 'default', '1 day', now(), now() - n * interval '1 ms', "
            "'pending', '{}' from generate_series(1, %s) n",
            [total],
        )
    taken: list[Claimed] = []
    barrier = threading.Barrier(claimers)
    failures: list[BaseException] = []

    async def take_all(store: Store) -> list[Claimed]:
        claimed: list[Claimed] = []
        wanted = 100
        while True:
            # Like the claim loop: look further down the lane after a short answer, since other claims lock its head.
            batch = await store.claim(LANES, 100, candidates=wanted, suspects=1)
            claimed += batch
            if not batch and wanted > 2000:
                return claimed
            wanted = 100 if len(batch) == 100 else min(wanted * 4, 20_000)

    def one_supervisor() -> None:
        try:
            barrier.wait(30)
            taken.extend(with_store(any_database, take_all))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=one_supervisor) for _ in range(claimers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    # At the very end each claim may have met only locked rows, so that some runs are left over.
    taken += claim(any_database, total)
    assert len({run.run for run in taken}) == len(taken) == total
    assert len({run.token for run in taken}) == total
    with psycopg.connect(any_database, autocommit=True) as connection:
        rows = connection.execute("select id::text, token from underway.run where state = 'in_progress'").fetchall()
        assert set(rows) == {(run.run, run.token) for run in taken}


# Waiting


def test_the_longest_possible_delay_can_be_stored(any_database: str) -> None:
    """The delay of `Retry(after=timedelta.max)`."""
    owner = uuid4()
    with psycopg.connect(any_database, autocommit=True) as connection:
        run, token = insert_held(connection, owner)
        retry = go_on(run, token, step=LANE.step, payload=None, delay=LONGEST.total_seconds())
        assert with_store(any_database, lambda store: store.continue_([retry], []), owner)
        assert value(
            connection, "select extract(year from due_at)::int > 3000 from underway.run where state = 'waiting'"
        )


# Expired leases


@pytest.mark.parametrize("crashes", [0, 1, 2, 5, 6, 7, 20])
def test_an_expired_lease_counts_as_a_crash_and_backs_off(any_database: str, crashes: int) -> None:
    owner = uuid4()
    with psycopg.connect(any_database, autocommit=True) as connection:
        run, token = insert_held(
            connection,
            owner,
            lease_expires_at=AGES_AGO,
            crashes=crashes,
            max_crashes=100,
            attempt_number=3,
            attempts=2,
            priority=2,
        )
        insert_held(connection, owner)
        assert with_store(any_database, lambda store: store.reap(100)) == [(run, token, None)]
        row = row_of(connection, "run", run)
        assert row is not None
        kept = {
            name: row[name]
            for name in ("state", "crashes", "attempt_number", "attempts", "owner", "lease_expires_at", "token")
        }
        assert kept == {
            "state": "waiting",
            "crashes": crashes + 1,
            "attempt_number": 4,
            "attempts": 2,
            "owner": None,
            "lease_expires_at": None,
            "token": token,
        }
        waits = "select extract(epoch from due_at - %s)::float8 from underway.run where id = %s"
        attempt = row_of(connection, "attempt", run)
        assert attempt is not None
        # The same delay as after a crash that a supervisor has seen.
        assert value(connection, waits, [attempt["finished_at"], run]) == crash_delay(crashes + 1)
        ahead = "select extract(epoch from due_at - rank)::float8 from underway.run where id = %s"
        assert value(connection, ahead, [run]) == 120
        assert (attempt["outcome"], attempt["attempt_number"], attempt["step"], attempt["token"]) == (
            "lost",
            4,
            "step",
            token,
        )
        assert str(owner) in attempt["error"]


def test_reaching_max_crashes_quarantines_the_run(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        run, token = insert_held(
            connection, uuid4(), lease_expires_at=AGES_AGO, crashes=2, max_crashes=3, attempt_number=2
        )
        assert with_store(any_database, lambda store: store.reap(100)) == [(run, token, "failed")]
        assert row_of(connection, "run", run) is None
        finished, attempt = row_of(connection, "finished_run", run), row_of(connection, "attempt", run)
        assert finished is not None
        assert attempt is not None
        assert (finished["state"], finished["crashes"], finished["input"]) == ("failed", 3, {"n": 1})
        assert finished["quarantined"]
        assert "quarantined after 3 crashes" in finished["error"]
        assert (attempt["outcome"], attempt["attempt_number"], attempt["token"]) == ("lost", 3, token)


def test_the_first_lost_lease_makes_a_suspect_whatever_max_crashes_is(any_database: str) -> None:
    """A dead supervisor had not even started most of its tasks."""
    with psycopg.connect(any_database, autocommit=True) as connection:
        run, token = insert_held(connection, uuid4(), lease_expires_at=AGES_AGO, max_crashes=1)
        assert with_store(any_database, lambda store: store.reap(100)) == [(run, token, None)]
        row = row_of(connection, "run", run)
        assert row is not None
        assert (row["state"], row["crashes"]) == ("waiting", 1)


def test_the_lost_attempt_names_the_host_of_its_supervisor(database: str, connection: Connection, us: UUID) -> None:
    run, _ = insert_held(connection, us, lease_expires_at=AGES_AGO)

    async def reap(store: Store) -> None:
        await store.register(pid=4711, app="app")
        await store.reap(100)

    with_store(database, reap, us)
    attempt = row_of(connection, "attempt", run)
    assert attempt is not None
    assert (attempt["host"], attempt["pid"]) == ("testhost", 4711)


def test_reaping_is_bounded_and_the_next_turn_continues(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        expired = {insert_held(connection, uuid4(), lease_expires_at=AGES_AGO)[0] for _ in range(5)}

    async def turns(store: Store) -> list[list[tuple[str, int, str | None]]]:
        return [await store.reap(2) for _ in range(4)]

    reaped = with_store(any_database, turns)
    assert [len(turn) for turn in reaped] == [2, 2, 1, 0]
    assert {run for turn in reaped for run, _, _ in turn} == expired


def test_a_reaped_run_refuses_its_late_owner_and_accepts_the_next(database: str, connection: Connection) -> None:
    run, token = insert_held(connection, uuid4(), lease_expires_at=AGES_AGO)

    async def late(store: Store) -> None:
        await store.reap(100)
        assert await store.finish([finish(run, token)], []) == set()
        assert await store.renew([Renewal(run, token, 60, None)]) == set()
        connection.execute("update underway.run set due_at = now()")
        await store.promote(100)
        (again,) = await store.claim(LANES, 1, candidates=1, suspects=1)
        assert again.token > token
        assert await store.finish([finish(run, token)], []) == set()
        assert await store.finish([finish(run, again.token)], []) == {again.token}

    owner = UUID(str(value(connection, "select owner from underway.run")))
    with_store(database, late, owner)
    attempts = connection.execute(
        "select token, outcome, attempt_number from underway.attempt order by token"
    ).fetchall()
    assert [(outcome, number) for _, outcome, number in attempts] == [("lost", 1), ("succeeded", 2)]


def test_a_claim_whose_answer_was_lost_is_released_without_a_crash(
    any_database: str,
) -> None:
    owner = uuid4()
    with psycopg.connect(any_database, autocommit=True) as connection:
        run, token = insert_held(connection, owner, rank=AGES_AGO, crashes=1, attempt_number=1)
        with_store(any_database, lambda store: store.release_unknown([]), owner)
        row = row_of(connection, "run", run)
        assert row is not None
        counters = {name: row[name] for name in ("state", "attempt_number", "attempts", "crashes", "releases", "owner")}
        assert counters == {
            "state": "pending",
            "attempt_number": 1,
            "attempts": 0,
            "crashes": 1,
            "releases": 1,
            "owner": None,
        }
        assert claim(any_database)[0].token > token
        assert value(connection, "select count(*) from underway.attempt") == 0


# Cancel


@pytest.mark.parametrize("state", ["pending", "waiting"])
def test_cancelling_a_run_that_is_not_running_closes_it_at_once(any_database: str, state: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        run = insert(connection, state=state, due_at=IN_AN_HOUR if state == "waiting" else AGES_AGO, attempts=1)
        assert client_queries.cancel(connection, UUID(run))
        assert not client_queries.cancel(connection, UUID(run))
        assert client_queries.status(connection, UUID(run)) == "cancelled"
        assert client_queries.outcome(connection, UUID(run)) == ("cancelled", None, "cancelled")
        finished = row_of(connection, "finished_run", run)
        assert finished is not None
        assert (finished["input"], finished["attempts"]) == ({"n": 1}, 1)
        assert claim(any_database) == []


def test_a_cancel_that_is_rolled_back_changes_nothing(database: str, connection: Connection) -> None:
    run = insert(connection)
    with psycopg.connect(database) as caller:
        assert client_queries.cancel(caller, UUID(run))
        caller.rollback()
    assert client_queries.status(connection, UUID(run)) == "pending"


# A row that another session has locked delays no other row


@contextmanager
def locked(database: str, run: str) -> Iterator[None]:
    """Another session has locked the row of this run, as a manual `select ... for update` does."""
    with psycopg.connect(database) as other_session:
        other_session.execute("select from underway.run where id = %s for update", [run])
        yield
        other_session.rollback()


class Scenario:
    """A store, and the runs of one statement; the second run is locked."""

    def __init__(self, store: Store, batch: list[tuple[str, int]]) -> None:
        self.store = store
        self.batch = batch


async def _renew(scenario: Scenario) -> set[str]:
    return await scenario.store.renew([Renewal(run, token, 60, None) for run, token in scenario.batch])


async def _finish(scenario: Scenario) -> set[str]:
    written = await scenario.store.finish([finish(run, token) for run, token in scenario.batch], [])
    return {run for run, token in scenario.batch if token in written}


async def _continue(scenario: Scenario) -> set[str]:
    written = await scenario.store.continue_([go_on(run, token) for run, token in scenario.batch], [])
    return {run for run, token in scenario.batch if token in written}


async def _claim(scenario: Scenario) -> set[str]:
    return {run.run for run in await scenario.store.claim(LANES, 10, candidates=10, suspects=1)}


async def _reap(scenario: Scenario) -> set[str]:
    return {run for run, _, _ in await scenario.store.reap(10)}


@pytest.mark.parametrize(
    ("statement", "columns"),
    [
        pytest.param(_renew, {}, id="renew"),
        pytest.param(_finish, {}, id="finish"),
        pytest.param(_continue, {}, id="continue"),
        pytest.param(_claim, {"state": "pending", "owner": None}, id="claim"),
        pytest.param(_reap, {"lease_expires_at": AGES_AGO}, id="reap"),
    ],
)
def test_a_statement_leaves_only_a_locked_row_for_its_next_turn(
    any_database: str, us: UUID, statement: Any, columns: dict[str, Any]
) -> None:
    """A statement that waited for the lock would run into its timeout and raise."""
    with psycopg.connect(any_database, autocommit=True) as connection:
        batch = [insert_held(connection, us, **columns) for _ in range(3)]
    all_runs = {run for run, _ in batch}
    (stuck, _) = batch[1]

    async def two_turns(store: Store) -> None:
        with locked(any_database, stuck):
            assert await statement(Scenario(store, batch)) == all_runs - {stuck}
        assert stuck in await statement(Scenario(store, batch))

    with_store(any_database, two_turns, us)


def test_promotion_and_release_leave_a_locked_row_for_the_next_turn(any_database: str, us: UUID) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        waiting = [insert(connection, state="waiting", due_at=AGES_AGO) for _ in range(3)]
        held = [insert_held(connection, us)[0] for _ in range(3)]

        async def turn(store: Store) -> None:
            await store.promote(10)
            await store.release_unknown([])

        left = "select array_agg(id::text order by id) from underway.run where state <> 'pending'"
        with locked(any_database, waiting[1]), locked(any_database, held[1]):
            with_store(any_database, turn, us)
            assert value(connection, left) == sorted([waiting[1], held[1]])
        with_store(any_database, turn, us)
        assert value(connection, left) is None


# What the renew loop makes of leases that were not renewed


class RenewLoopUnderTest:
    """A `RenewLoop` with a real store, driven turn by turn."""

    def __init__(self, database: str, owner: UUID) -> None:
        self.work, self.leases = ReconnectingConnection(database), ReconnectingConnection(database)
        self.store = Store(self.work, self.leases, owner, "testhost")
        self.held = HeldTasks()
        self.lost: list[str] = []
        signals, pool = Signals(), cast(Any, None)
        signals.task_lost.connect(lambda task: self.lost.append(task.run))
        self.loop = RenewLoop(self.store, Wakeup(self.leases, lambda payload: None), self.held, pool, signals)

    async def claim(self) -> None:
        for claimed in await self.store.claim(LANES, 100, candidates=100, suspects=1):
            self.held.add([held_task(claimed)])

    async def renew(self) -> set[str]:
        """Plays one turn and returns the runs with a new deadline."""
        before = {task.token: task.lease_deadline for task in self.held}
        await self.loop.renew(list(self.held))
        return {task.run for task in self.held if task.lease_deadline > before[task.token]}

    async def close(self) -> None:
        await self.work.close()
        await self.leases.close()


def _renewing(database: str, owner: UUID, play: Any) -> None:
    async def main() -> None:
        renewing = RenewLoopUnderTest(database, owner)
        try:
            await renewing.claim()
            await play(renewing)
        finally:
            await renewing.close()

    asyncio.run(main())


def test_a_locked_row_is_not_lost_and_is_renewed_next_turn(database: str, connection: Connection, us: UUID) -> None:
    stuck, *free = [insert(connection) for _ in range(4)]

    async def play(renewing: RenewLoopUnderTest) -> None:
        with locked(database, stuck):
            assert await renewing.renew() == set(free)
        assert renewing.lost == []
        assert await renewing.renew() == {stuck, *free}
        assert renewing.lost == []

    _renewing(database, us, play)


@pytest.mark.parametrize(
    "theft",
    [
        pytest.param("update underway.run set token = nextval('underway.token')", id="new token"),
        pytest.param("update underway.run set owner = gen_random_uuid()", id="new owner"),
        pytest.param("update underway.run set state = 'pending', owner = null", id="released"),
        pytest.param("delete from underway.run", id="gone"),
    ],
)
def test_a_row_that_is_no_longer_ours_is_lost(database: str, connection: Connection, us: UUID, theft: str) -> None:
    stolen, kept = insert(connection), insert(connection)

    async def play(renewing: RenewLoopUnderTest) -> None:
        connection.execute(theft + " where id = %s", [stolen])
        assert await renewing.renew() == {kept}
        assert renewing.lost == [stolen]

    _renewing(database, us, play)


def test_a_cancelled_run_is_neither_renewed_nor_lost(database: str, connection: Connection, us: UUID) -> None:
    cancelled, kept = insert(connection), insert(connection)

    async def play(renewing: RenewLoopUnderTest) -> None:
        assert client_queries.cancel(connection, UUID(cancelled))
        assert await renewing.renew() == {kept}
        assert renewing.lost == []

    _renewing(database, us, play)


def test_a_task_committed_during_its_renewal_is_not_lost(database: str, connection: Connection, us: UUID) -> None:
    run = insert(connection)

    async def play(renewing: RenewLoopUnderTest) -> None:
        (task,) = renewing.held
        renewing.held.end(task)
        await renewing.store.finish([finish(run, task.token)], [])
        await renewing.loop.renew([task])
        assert renewing.lost == []

    _renewing(database, us, play)


def test_progress_is_written_by_a_renewal_and_kept_by_the_next(database: str, connection: Connection, us: UUID) -> None:
    insert(connection)

    async def play(renewing: RenewLoopUnderTest) -> None:
        (task,) = renewing.held
        task.progress = b'{"done": 1}'
        for _ in range(2):
            await renewing.renew()
            assert value(connection, "select progress from underway.run") == {"done": 1}
        assert task.progress is None

    _renewing(database, us, play)


@pytest.mark.parametrize("progress", [b'{"note": "\\u0000"}', b"\x00", b"\xff", b"{"], ids=repr)
def test_progress_that_cannot_be_stored_costs_no_lease(
    database: str, connection: Connection, us: UUID, progress: bytes
) -> None:
    bad, good = insert(connection), insert(connection)

    async def play(renewing: RenewLoopUnderTest) -> None:
        tasks = {task.run: task for task in renewing.held}
        tasks[bad].progress = progress
        tasks[good].progress = b'{"done": 2}'
        assert await renewing.renew() == {bad, good}
        assert await renewing.renew() == {bad, good}
        assert renewing.lost == []

    _renewing(database, us, play)
