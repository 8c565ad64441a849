"""Run affinity: a commit claims the next step for its own supervisor. The fence, which runs are kept, lost answers."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from committing import NEXT, NEXT_LANE, Committing, attempts_of, play
from db import (
    AGES_AGO,
    LANE,
    Connection,
    dump,
    finish,
    go_on,
    insert,
    insert_held,
    open_store,
    row_of,
    spawn,
    value,
)

from underway.definition.manifest import Lane, Policy, Step
from underway.guardian import lease_clock
from underway.postgres.reconnecting import DatabaseUnavailable
from underway.postgres.supervisor_store import Renewal, Store
from underway.supervisor.tasks.verdict import Observation
from underway.wire.messages import NextStep

US, OTHERS = uuid4(), uuid4()
KEPT = Policy(lease=timedelta(seconds=45), max_crashes=7)
NEXT_STEP = Step("next", policy=KEPT)
SERVED = {NEXT_LANE: NEXT_STEP}

LEASE = "select extract(epoch from lease_expires_at - clock_timestamp())::float8 from underway.run where id = %s"


async def keep(store: Store, run: str, token: int, policy: Policy | None = KEPT, **more: Any) -> dict[int, int | None]:
    return await store.continue_([go_on(run, token, **more)], [], [policy])


def live_row(connection: Connection, run: str) -> dict[str, Any]:
    row = row_of(connection, "run", run)
    assert row is not None
    return row


# What the store writes


def test_a_kept_run_is_claimed_under_the_policy_of_its_next_step(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        counters = {"attempt_number": 4, "attempts": 2, "crashes": 1, "releases": 3}
        run, token = insert_held(
            connection, US, **counters, max_crashes=2, progress='{"done": 1}', rank=AGES_AGO, due_at=AGES_AGO
        )
        before = live_row(connection, run)

        async def hand_over() -> dict[int, int | None]:
            async with open_store(any_database, US) as store:
                return await keep(store, run, token, queue="other", priority=0, ran_number=5)

        tokens = asyncio.run(hand_over())
        row = live_row(connection, run)
        assert tokens == {token: row["token"]}
        assert row["token"] > token
        assert (row["state"], row["owner"], row["max_crashes"]) == ("in_progress", str(US), 7)
        assert (row["step"], row["queue"], row["input"], row["progress"]) == ("next", "other", {"n": 2}, None)
        assert {name: row[name] for name in counters} == dict.fromkeys(counters, 0)
        assert 30 < value(connection, LEASE, [run]) <= 45
        # It keeps its place in line in case another supervisor has to claim it.
        assert (row["due_at"], row["rank"]) == (before["due_at"], before["due_at"])
        attempt = row_of(connection, "attempt", run)
        assert attempt is not None
        # The attempt that ended is recorded under its own token, not under the next one.
        assert (attempt["token"], attempt["attempt_number"], attempt["step"]) == (token, 5, "step")


def test_after_the_hand_over_only_the_new_token_writes(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        run, old = insert_held(connection, US)

        async def scenario() -> None:
            async with open_store(any_database, US) as store:
                new = (await keep(store, run, old))[old]
                assert new is not None
                assert await store.owned([run]) == {(run, new): False}
                before = dump(connection)
                assert await store.finish([finish(run, old)], [spawn(parent=old)]) == set()
                assert await keep(store, run, old) == {}
                assert await keep(store, run, old, policy=None) == {}
                assert await store.renew([Renewal(run, old, 600.0, None)]) == set()
                assert dump(connection) == before
                assert await store.renew([Renewal(run, new, 600.0, None)]) == {run}
                assert value(connection, LEASE, [run]) > 500
                newer = (await keep(store, run, new, ran_step="next"))[new]
                assert newer is not None
                assert newer > new
                assert await store.finish([finish(run, newer)], []) == {newer}

        asyncio.run(scenario())
        tokens = connection.execute("select token, step from underway.attempt order by token").fetchall()
        assert [step for _, step in tokens] == ["step", "next", "next"]
        assert [token for token, _ in tokens] == sorted({token for token, _ in tokens})


def test_another_supervisor_cannot_keep_a_run(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        run, token = insert_held(connection, US)
        before = dump(connection)

        async def steal() -> dict[int, int | None]:
            async with open_store(any_database, OTHERS) as store:
                return await keep(store, run, token)

        assert asyncio.run(steal()) == {}
        assert dump(connection) == before


def test_tokens_that_were_swapped_keep_neither_run(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        (first, one), (second, two) = (insert_held(connection, US) for _ in range(2))
        before = dump(connection)

        async def swap() -> dict[int, int | None]:
            async with open_store(any_database, US) as store:
                return await store.continue_([go_on(first, two), go_on(second, one)], [], [KEPT, KEPT])

        assert asyncio.run(swap()) == {}
        assert dump(connection) == before


def test_a_group_may_keep_some_of_its_runs_each_under_its_own_policy(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        held = [insert_held(connection, US) for _ in range(5)]
        policies = [None, KEPT, None, Policy(lease=timedelta(seconds=900), max_crashes=1), KEPT]

        async def hand_over() -> dict[int, int | None]:
            async with open_store(any_database, US) as store:
                return await store.continue_([go_on(*key) for key in held], [], policies)

        tokens = asyncio.run(hand_over())
        rows = [live_row(connection, run) for run, _ in held]
        assert tokens == {
            token: None if policy is None else row["token"]
            for (_, token), policy, row in zip(held, policies, rows, strict=True)
        }
        assert len({row["token"] for row in rows}) == 5
        for (run, token), policy, row in zip(held, policies, rows, strict=True):
            if policy is None:
                assert (row["state"], row["owner"], row["lease_expires_at"]) == ("pending", None, None)
                assert row["token"] == token
            else:
                assert (row["state"], row["owner"], row["max_crashes"]) == ("in_progress", str(US), policy.max_crashes)
                lease = policy.lease.total_seconds()
                assert lease - 20 < value(connection, LEASE, [run]) <= lease


def test_idle_supervisors_are_notified_only_of_runs_that_are_not_kept(database: str) -> None:
    with (
        psycopg.connect(database, autocommit=True) as connection,
        psycopg.connect(database, autocommit=True) as listener,
    ):
        listener.execute("listen underway")

        async def hand_over() -> None:
            async with open_store(database, US) as store:
                await store.register(pid=1, app="app")
                await store.set_idle(True)
                await keep(store, *insert_held(connection, US), queue="stays")
                await keep(store, *insert_held(connection, US), policy=None, queue="goes")

        asyncio.run(hand_over())
        heard = [notify.payload for notify in listener.notifies(timeout=10, stop_after=1)]
        connection.execute("select pg_notify('underway', 'the last')")
        heard += [notify.payload for notify in listener.notifies(timeout=10, stop_after=1)]
        assert heard == ["goes", "the last"]


def test_a_run_with_a_cancel_request_is_not_kept(database: str, connection: Connection) -> None:
    run, token = insert_held(connection, US, cancel_requested=True)

    async def hand_over() -> dict[int, int | None]:
        async with open_store(database, US) as store:
            return await keep(store, run, token)

    assert asyncio.run(hand_over()) == {}
    assert live_row(connection, run)["step"] == "step"


def test_a_kept_run_is_reaped_when_its_lease_expires(database: str, connection: Connection) -> None:
    """Under the policy of the step for which it was kept. Its late owner can no longer write."""
    run, token = insert_held(connection, US)

    async def expire() -> None:
        async with open_store(database, US) as store:
            new = (await keep(store, run, token, policy=Policy(max_crashes=2)))[token]
            assert new is not None
            connection.execute("update underway.run set crashes = 1")
            connection.execute("update underway.run set lease_expires_at = now() - interval '1 s'")
            assert await store.reap(10) == [(run, new, "failed")]
            assert await store.finish([finish(run, new)], []) == set()

    asyncio.run(expire())
    rows = connection.execute("select step, outcome from underway.attempt order by token").fetchall()
    assert rows == [("step", "succeeded"), ("next", "lost")]


# Which runs are kept


def test_the_next_step_is_kept_when_there_is_a_worker_for_it(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        run = insert(connection, crashes=1, attempts=2, attempt_number=3)
        old: list[int] = []

        async def script(committing: Committing) -> None:
            old.append(committing.submit(run, b'{"n": "\xc3\xbc"}', ending="next").token)

        committing = play(any_database, script, workers=1, lanes=SERVED)
        (task,) = committing.stayed
        row = live_row(connection, run)
        assert list(committing.held) == [task]
        assert (row["state"], row["owner"], row["token"]) == ("in_progress", str(committing.owner), task.token)
        assert task.token > old[0]
        assert (task.run, task.lane, task.step) == (run, NEXT_LANE, NEXT_STEP)
        assert (task.number, task.attempts, task.crashes, task.releases) == (0, 0, 0, 0)
        assert (task.input, task.ended, task.suspect, task.started_at) == (b'{"n": "\xc3\xbc"}', False, False, None)
        assert 0 < task.lease_deadline - lease_clock.now() <= 45
        assert committing.unknown == 0
        assert attempts_of(connection, run) == [("succeeded", 4)]


def test_no_more_runs_are_kept_than_there_is_free_capacity(database: str, connection: Connection) -> None:
    batch = [insert(connection) for _ in range(5)]

    async def script(committing: Committing) -> None:
        for run in batch:
            committing.submit(run, ending="next")

    committing = play(database, script, workers=2, lanes=SERVED)
    assert len(committing.stayed) == 2
    states = connection.execute("select state, count(*) from underway.run group by state").fetchall()
    assert dict(states) == {"in_progress": 2, "pending": 3}
    kept = {task.run for task in committing.stayed}
    assert {run for run in batch if live_row(connection, run)["state"] == "in_progress"} == kept
    assert {task.token for task in committing.held} == {task.token for task in committing.stayed}


@pytest.mark.parametrize(
    ("workers", "lanes", "following"),
    [
        pytest.param(0, SERVED, NEXT, id="no free capacity"),
        pytest.param(3, {}, NEXT, id="lane not served"),
        pytest.param(3, {Lane("default", "another job", "next"): NEXT_STEP}, NEXT, id="another job's step"),
        pytest.param(3, SERVED, NEXT._replace(queue="elsewhere"), id="another queue"),
        pytest.param(3, SERVED, NEXT._replace(step="unknown"), id="another step"),
        pytest.param(3, SERVED, NEXT._replace(delay=60.0), id="delayed"),
    ],
)
def test_the_next_step_is_not_kept(
    database: str, connection: Connection, workers: int, lanes: dict[Lane, Step], following: NextStep
) -> None:
    run = insert(connection)

    async def script(committing: Committing) -> None:
        committing.submit(run, ending="next", following=following)

    committing = play(database, script, workers=workers, lanes=lanes)
    row = live_row(connection, run)
    assert (row["state"], row["owner"], row["lease_expires_at"]) == (
        "waiting" if following.delay else "pending",
        None,
        None,
    )
    assert (len(committing.held), committing.stayed) == (0, [])
    assert committing.continued == [following.delay]


def test_a_step_to_be_repeated_is_not_kept(database: str, connection: Connection) -> None:
    """Not even without a delay: another supervisor may have more luck with it."""
    retried, released = insert(connection), insert(connection)
    lanes = {LANE: Step("step", policy=KEPT), **SERVED}

    async def script(committing: Committing) -> None:
        committing.fail(retried)
        committing.fail(released, Observation.INTERRUPTED_SHUTDOWN)

    committing = play(database, script, workers=3, lanes=lanes)
    assert (len(committing.held), committing.stayed) == (0, [])
    assert (live_row(connection, retried)["state"], live_row(connection, released)["state"]) == ("waiting", "pending")


def test_capacity_is_reserved_for_runs_that_an_open_commit_may_keep(database: str, connection: Connection) -> None:
    """Otherwise a claim beside the commit would fetch other runs for the same workers."""
    run = insert(connection)
    capacities: list[int] = []

    async def script(committing: Committing) -> None:
        async def record(moment: str, pid: int) -> None:
            capacities.append(committing.dispatch.free_capacity())

        committing.work.cut = record
        assert committing.dispatch.free_capacity() == 2
        committing.submit(run, ending="next")

    committing = play(database, script, workers=2, lanes=SERVED)
    assert capacities == [1, 1]
    assert committing.dispatch.free_capacity() == 2  # the stub does not queue the kept run


# Answers that are lost


def raise_connection_lost() -> None:
    raise DatabaseUnavailable("server closed the connection unexpectedly")


def test_a_kept_run_whose_answer_was_lost_is_released_without_a_crash(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        batch = [insert(connection) for _ in range(3)]

        async def lose_answer(moment: str, pid: int) -> None:
            if moment == "after":
                # In the database the runs are ours, under tokens that we never receive.
                assert value(connection, "select count(*) from underway.run where state = 'in_progress'") == 3
                raise_connection_lost()

        async def script(committing: Committing) -> None:
            committing.work.cut = lose_answer
            for run in batch:
                committing.submit(run, ending="next", spawned=[spawn()])

        async def release(committing: Committing) -> None:
            assert committing.unknown > 0
            assert committing.stayed == []
            assert not committing.held  # so that the runs are not among the known ones
            await committing.store.release_unknown(committing.held.runs())

        committing = play(any_database, script, workers=3, lanes=SERVED, then=release)
        assert committing.commits.outcomes == {"succeeded": 3}
        assert value(connection, "select count(*) from underway.run where job = 'child'") == 3
        for run in batch:
            assert attempts_of(connection, run) == [("succeeded", 1)]
            row = live_row(connection, run)
            assert (row["state"], row["step"], row["owner"], row["lease_expires_at"]) == ("pending", "next", None, None)
            assert (row["releases"], row["crashes"], row["attempts"], row["attempt_number"]) == (1, 0, 0, 0)


def test_a_hand_over_that_did_not_take_effect_is_repeated_and_its_run_kept(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        run = insert(connection)

        async def kill(moment: str, pid: int) -> None:
            if moment == "before":
                assert value(connection, "select pg_terminate_backend(%s, 10000)", [pid])

        async def script(committing: Committing) -> None:
            committing.work.cut = kill
            committing.submit(run, ending="next")

        committing = play(any_database, script, workers=1, lanes=SERVED)
        assert committing.work.opened == 2
        assert committing.unknown == 0
        (task,) = committing.stayed
        assert list(committing.held) == [task]
        assert (live_row(connection, run)["state"], live_row(connection, run)["token"]) == ("in_progress", task.token)
        assert attempts_of(connection, run) == [("succeeded", 1)]


def test_a_run_is_not_released_before_its_commit_is_repeated(database: str, connection: Connection) -> None:
    """Between the lost answer and the repetition the run is held under its old token."""
    run = insert(connection)

    async def script(committing: Committing) -> None:
        async def lose_answer(moment: str, pid: int) -> None:
            if moment == "after":
                await committing.store.release_unknown(committing.held.runs())
                assert live_row(connection, run)["state"] == "in_progress"
                raise_connection_lost()

        committing.work.cut = lose_answer
        committing.submit(run, ending="next")

    async def release(committing: Committing) -> None:
        await committing.store.release_unknown(committing.held.runs())

    committing = play(database, script, workers=1, lanes=SERVED, then=release)
    assert committing.unknown == 1
    assert live_row(connection, run)["state"] == "pending"
    assert attempts_of(connection, run) == [("succeeded", 1)]


def test_a_run_whose_row_is_locked_is_kept_once_it_is_unlocked(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        stuck, free = insert(connection), insert(connection)

        async def script(committing: Committing) -> None:
            with psycopg.connect(any_database) as other_session:
                other_session.execute("select from underway.run where id = %s for update", [stuck])
                committing.submit(stuck, ending="next")
                committing.submit(free, ending="next")
                while not committing.stayed:
                    await asyncio.sleep(0.001)
                assert [task.run for task in committing.stayed] == [free]
                other_session.rollback()

        committing = play(any_database, script, workers=2, lanes=SERVED)
        assert [task.run for task in committing.stayed] == [free, stuck]
        assert committing.unknown == 0
        assert {task.token for task in committing.held} == {task.token for task in committing.stayed}
        for run in (stuck, free):
            assert attempts_of(connection, run) == [("succeeded", 1)]


@pytest.mark.parametrize("payload", [b'"\x00"', b'"\xff"', b"{"], ids=repr)
def test_a_payload_that_cannot_be_stored_does_not_affect_other_kept_runs(
    database: str, connection: Connection, payload: bytes
) -> None:
    bad, good = insert(connection), insert(connection)

    async def script(committing: Committing) -> None:
        committing.submit(bad, payload, ending="next")
        committing.submit(good, ending="next")

    committing = play(database, script, workers=2, lanes=SERVED)
    assert [task.run for task in committing.stayed] == [good]
    assert {task.token for task in committing.held} == {task.token for task in committing.stayed}
    assert attempts_of(connection, bad) == [("failed", 1)]
    assert (live_row(connection, bad)["state"], live_row(connection, bad)["step"]) == ("waiting", "step")
    assert committing.dispatch.free_capacity() == 2
