"""Group commit with a real store: a bad payload, a lost answer, a locked or a lost row hurts only its own run."""

import asyncio
import random
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from committing import Committing, attempts_of, play
from db import STEP, Connection, claim, insert, insert_held, next_token, row_of, spawn, value, with_store

from underway.postgres import client_queries
from underway.postgres.reconnecting import DatabaseUnavailable
from underway.postgres.supervisor_store import Claimed
from underway.postgres.transitions import Attempt
from underway.supervisor.loops.commit import MOST_TOGETHER
from underway.supervisor.tasks.ended import Ended
from underway.supervisor.tasks.verdict import Observation, decide

ENDINGS = ["done", "next"]


# Payloads that cannot be stored

BAD_PAYLOADS = [
    pytest.param(b'"\x00"', "0x00", id="raw NUL"),
    pytest.param(b'"\xff"', "0xff", id="invalid UTF-8"),
    pytest.param(b'{"open": ', "json", id="invalid JSON"),
    pytest.param(b"", "json", id="empty"),
    pytest.param(b"[" * 100_000 + b"]" * 100_000, "stack depth", id="too deep"),
]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(("payload", "message"), BAD_PAYLOADS)
def test_only_the_payload_that_cannot_be_stored_becomes_a_failed_attempt(
    database: str, connection: Connection, payload: bytes, message: str, ending: str
) -> None:
    first, bad, last = (insert(connection) for _ in range(3))

    async def script(committing: Committing) -> None:
        committing.submit(first, ending=ending)
        committing.submit(bad, payload, ending=ending)
        committing.submit(last, ending=ending)

    committing = play(database, script)
    assert not committing.held
    assert committing.commits.outcomes == {"succeeded": 2, "failed": 1}
    for good in (first, last):
        assert attempts_of(connection, good) == [("succeeded", 1)]
        assert client_queries.status(connection, UUID(good)) == ("succeeded" if ending == "done" else "pending")
    row, attempt = row_of(connection, "run", bad), row_of(connection, "attempt", bad)
    assert row is not None
    assert attempt is not None
    # The run stays at its step with its input, and backs off as after any failure.
    assert (row["state"], row["step"], row["attempts"], row["input"]) == ("waiting", "step", 1, {"n": 1})
    assert (attempt["outcome"], attempt["attempt_number"], attempt["pid"]) == ("failed", 1, 7)
    assert attempt["error"].startswith("what this attempt handed over cannot be stored:")
    assert message.lower() in attempt["error"].lower()


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    "flaw",
    [
        pytest.param({"input": "{"}, id="invalid JSON"),
        pytest.param({"queue": None}, id="no queue"),
        pytest.param({"priority": 40_000}, id="priority out of range"),
        pytest.param({"id": "not a uuid"}, id="invalid ID"),
    ],
)
def test_a_child_that_cannot_be_stored_fails_only_its_parent(
    any_database: str, ending: str, flaw: dict[str, Any]
) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        good, bad = insert(connection), insert(connection)

        async def script(committing: Committing) -> None:
            committing.submit(bad, ending=ending, spawned=[spawn(), spawn(**flaw)])
            committing.submit(good, ending=ending, spawned=[spawn()])

        play(any_database, script)
        assert attempts_of(connection, good) == [("succeeded", 1)]
        assert attempts_of(connection, bad) == [("failed", 1)]
        assert value(connection, "select count(*) from underway.run where job = 'child'") == 1


def test_a_child_with_an_existing_id_fails_only_its_parent(database: str, connection: Connection) -> None:
    good, bad, other = insert(connection), insert(connection), insert(connection, state="waiting")

    async def script(committing: Committing) -> None:
        committing.submit(bad, spawned=[spawn(id=other)])
        committing.submit(good)

    play(database, script)
    assert attempts_of(connection, bad) == [("failed", 1)]
    assert attempts_of(connection, good) == [("succeeded", 1)]


def test_a_payload_that_cannot_be_stored_fails_the_run_when_no_attempt_is_left(
    database: str, connection: Connection
) -> None:
    max_attempts = STEP.policy.retry.max_attempts
    run = insert(connection, attempts=max_attempts - 1, attempt_number=max_attempts - 1)

    async def script(committing: Committing) -> None:
        committing.submit(run, b"{")

    play(database, script)
    outcome = client_queries.outcome(connection, UUID(run))
    assert outcome is not None
    assert outcome[0] == "failed"
    assert "cannot be stored" in (outcome[2] or "")
    assert attempts_of(connection, run) == [("failed", max_attempts)]


def test_a_run_under_the_id_of_a_finished_one_is_dropped(any_database: str) -> None:
    """(Such a run could neither be finished nor reaped, and kept its key.)"""
    with psycopg.connect(any_database, autocommit=True) as connection:
        finished = insert(connection)
        assert client_queries.cancel(connection, UUID(finished))
        twin = insert(connection, id=finished, concurrency_key="key", holds_key=True)
        good = insert(connection)
        following = insert(connection, state="waiting", concurrency_key="key")

        async def script(committing: Committing) -> None:
            committing.submit(twin)
            committing.submit(good)

        committing = play(any_database, script)
        assert not committing.held
        assert value(connection, "select count(*) from underway.run where id = %s", [twin]) == 0
        assert client_queries.status(connection, UUID(finished)) == "cancelled"
        assert client_queries.status(connection, UUID(good)) == "succeeded"
        assert client_queries.status(connection, UUID(following)) == "pending"


@pytest.mark.parametrize("token", ["older", "newer", "another's"])
def test_a_run_with_a_finished_twin_is_fenced_too(any_database: str, token: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        finished = insert(connection)
        assert client_queries.cancel(connection, UUID(finished))
        owner = uuid4()
        twin, own = insert_held(connection, owner, id=finished)
        wrong = {"older": own - 1, "newer": own + 1}.get(token, own)
        caller = uuid4() if token == "another's" else owner
        assert not with_store(any_database, lambda store: store.drop(twin, wrong), caller)
        assert value(connection, "select count(*) from underway.run") == 1
        assert with_store(any_database, lambda store: store.drop(twin, own), owner)


def test_an_error_that_cannot_be_stored_is_escaped_as_ascii(database: str, connection: Connection) -> None:
    """(The lease of such an attempt expired three times; then its run was quarantined without a trace of the error.)"""
    bad, good = insert(connection), insert(connection)

    async def script(committing: Committing) -> None:
        committing.fail(bad, error="a\0\N{DUCK}")
        committing.fail(good)

    committing = play(database, script)
    assert not committing.held
    assert attempts_of(connection, bad) == attempts_of(connection, good) == [("failed", 1)]
    attempt = row_of(connection, "attempt", bad)
    assert attempt is not None
    assert attempt["error"] == r"a\x00\U0001f986"


def test_an_outcome_that_cannot_be_written_is_left_to_the_reaper(database: str, connection: Connection) -> None:
    """No part of it can be left out, and it must not be retried for ever."""
    connection.execute("alter table underway.attempt add check (error <> 'refused')")
    bad, good = insert(connection), insert(connection)

    async def script(committing: Committing) -> None:
        committing.fail(bad, error="refused")
        committing.fail(good)

    committing = play(database, script)
    assert not committing.held
    assert client_queries.status(connection, UUID(bad)) == "in_progress"
    assert attempts_of(connection, bad) == []
    assert attempts_of(connection, good) == [("failed", 1)]


def test_an_outcome_with_a_newer_token_than_its_row_is_dropped(database: str, connection: Connection) -> None:
    """As after a failover to a standby that lagged: the run counts as unknown."""
    run = insert(connection)

    async def script(committing: Committing) -> None:
        connection.execute("update underway.run set token = token - 1")
        committing.submit(run)

    committing = play(database, script)
    assert (len(committing.held), committing.unknown) == (0, 1)
    assert attempts_of(connection, run) == []


# Commits whose answer is lost


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_commit_cut_off_by_a_lost_connection_counts_once(any_database: str, ending: str, when: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        batch = [insert(connection) for _ in range(3)]

        async def kill(moment: str, pid: int) -> None:
            if moment == when:
                # Waits until the backend is gone.
                assert value(connection, "select pg_terminate_backend(%s, 10000)", [pid])
                if moment == "after":
                    await current[0].work.close()
                    raise_connection_lost()

        current: list[Committing] = []

        async def script(committing: Committing) -> None:
            current.append(committing)
            committing.work.cut = kill
            for run in batch:
                committing.submit(run, ending=ending, spawned=[spawn()])

        committing = play(any_database, script)
        assert not committing.held
        assert committing.work.opened == 2
        assert committing.commits.outcomes == {"succeeded": 3}
        for run in batch:
            assert attempts_of(connection, run) == [("succeeded", 1)]
            assert client_queries.status(connection, UUID(run)) == ("succeeded" if ending == "done" else "pending")
        assert value(connection, "select count(*) from underway.run where job = 'child'") == 3


def raise_connection_lost() -> None:
    raise DatabaseUnavailable("server closed the connection unexpectedly")


def test_a_commit_that_took_effect_counts_even_if_its_run_has_moved_on(database: str, connection: Connection) -> None:
    """The answer is lost, another supervisor claims the next step, and then the commit is repeated."""
    run = insert(connection)
    others: list[Claimed] = []

    async def lose_answer(moment: str, pid: int) -> None:
        if moment == "after":
            connection.execute("update underway.run set step = 'step'")  # a lane that the helper claims
            others.extend(await asyncio.to_thread(claim, database))
            raise_connection_lost()

    async def script(committing: Committing) -> None:
        committing.work.cut = lose_answer
        committing.submit(run, ending="next")

    committing = play(database, script)
    assert committing.commits.outcomes == {"succeeded": 1}
    assert attempts_of(connection, run) == [("succeeded", 1)]
    row = row_of(connection, "run", run)
    assert row is not None
    assert (row["state"], row["token"], row["input"]) == ("in_progress", others[0].token, "good")


# Rows that are locked or lost


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_locked_run_is_committed_when_unlocked_and_the_others_at_once(any_database: str, ending: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        stuck, *free = [insert(connection) for _ in range(3)]

        async def script(committing: Committing) -> None:
            with psycopg.connect(any_database) as other_session:
                for run in (free[0], stuck, free[1]):
                    committing.submit(run, ending=ending)
                other_session.execute("select from underway.run where id = %s for update", [stuck])
                # The loop has not run yet: nothing has been awaited since the rows were submitted.
                while len(committing.held) > 1:
                    await asyncio.sleep(0.001)
                assert [task.run for task in committing.held] == [stuck]
                assert committing.commits.uncommitted() >= 1  # neither flushed nor forgotten
                assert all(attempts_of(connection, run) == [("succeeded", 1)] for run in free)
                assert attempts_of(connection, stuck) == []
                other_session.rollback()

        committing = play(any_database, script)
        assert not committing.held
        assert attempts_of(connection, stuck) == [("succeeded", 1)]


def test_nothing_of_a_lost_run_is_written(database: str, connection: Connection) -> None:
    lost, kept = insert(connection), insert(connection)

    async def script(committing: Committing) -> None:
        connection.execute("update underway.run set token = %s where id = %s", [next_token(connection), lost])
        committing.submit(lost, spawned=[spawn()])
        committing.submit(kept)

    committing = play(database, script)
    assert not committing.held
    assert committing.commits.outcomes == {"succeeded": 1}
    assert client_queries.status(connection, UUID(lost)) == "in_progress"
    assert attempts_of(connection, lost) == []
    assert value(connection, "select count(*) from underway.run where job = 'child'") == 0


@pytest.mark.parametrize("max_crashes", [1, 3])
def test_a_run_that_was_reaped_is_lost_although_its_attempt_is_recorded(
    database: str, connection: Connection, max_crashes: int
) -> None:
    """The reaper's attempt row must not be taken for our own commit whose answer was lost."""
    run = insert(connection)

    async def script(committing: Committing) -> None:
        connection.execute(
            "update underway.run set lease_expires_at = now() - interval '1 s', max_crashes = %s", [max_crashes]
        )
        assert len(await committing.store.reap(10)) == 1
        committing.submit(run, ending="next")

    committing = play(database, script)
    assert not committing.held
    assert committing.commits.outcomes == {}
    assert committing.continued == []
    assert attempts_of(connection, run) == [("lost", 1)]


def test_a_task_that_is_no_longer_held_is_not_written(database: str, connection: Connection) -> None:
    """The renew loop found it lost after its outcome was submitted."""
    run, other = insert(connection), insert(connection)

    async def script(committing: Committing) -> None:
        committing.held.lose(committing.submit(run))
        committing.submit(other)

    play(database, script)
    assert attempts_of(connection, run) == []
    assert attempts_of(connection, other) == [("succeeded", 1)]


# Children, groups and attempt rows


@pytest.mark.parametrize("ending", ENDINGS)
def test_children_appear_exactly_with_the_commit_of_their_parent(any_database: str, ending: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        stuck, free = insert(connection), insert(connection)
        late = [spawn('"now"', priority=3), spawn('"later"', delay=60.0)]
        early = spawn('"other"')
        children = "select array_agg(input #>> '{}' order by input #>> '{}') from underway.run where job = 'child'"

        async def script(committing: Committing) -> None:
            with psycopg.connect(any_database) as other_session:
                other_session.execute("select from underway.run where id = %s for update", [stuck])
                committing.submit(stuck, ending=ending, spawned=late)
                committing.submit(free, ending=ending, spawned=[early])
                while len(committing.held) > 1:
                    await asyncio.sleep(0.001)
                assert value(connection, children) == ["other"]
                other_session.rollback()

        play(any_database, script)
        assert value(connection, children) == ["later", "now", "other"]
        now, later = (row_of(connection, "run", child["id"]) for child in late)
        assert now is not None
        assert later is not None
        assert (now["state"], later["state"], now["priority"], now["token"]) == ("pending", "waiting", 3, 0)


def test_a_failed_attempt_and_a_good_one_are_committed_together(database: str, connection: Connection) -> None:
    bad, final, good = (insert(connection) for _ in range(3))

    async def script(committing: Committing) -> None:
        committing.fail(bad)
        committing.fail(final, Observation.FAIL)
        committing.submit(good)

    committing = play(database, script)
    assert committing.commits.outcomes == {"succeeded": 1, "failed": 2}
    assert [client_queries.status(connection, UUID(run)) for run in (bad, final, good)] == [
        "waiting",
        "failed",
        "succeeded",
    ]
    assert committing.continued
    assert 0.5 <= committing.continued[0] <= 1.0  # the delay that the promoter is told


def test_several_groups_are_committed_completely(database: str, connection: Connection) -> None:
    total = 2 * MOST_TOGETHER - 1
    connection.execute(
        "insert into underway.run (id, job, step, queue, keep, due_at, rank, state, input) "
        "select gen_random_uuid(), 'job', 'step', 'default', '1 day', now(), now(), 'pending', '{}' "
        "from generate_series(1, %s)",
        [total],
    )

    async def script(committing: Committing) -> None:
        for task in list(committing.held):
            committing.submit(task.run)

    play(database, script)
    assert value(connection, "select count(*) from underway.finished_run") == total
    assert value(connection, "select count(*) from underway.attempt") == total
    assert value(connection, "select count(*) from underway.run") == 0


def test_an_attempt_that_never_started_leaves_no_row(database: str, connection: Connection) -> None:
    run = insert(connection)

    async def script(committing: Committing) -> None:
        task = committing.task(run)
        row = decide(task, Observation.NEVER_STARTED, Attempt("released"), random.Random(1))
        committing.commits.submit(Ended(task, row, []))

    play(database, script)
    after = row_of(connection, "run", run)
    assert after is not None
    assert (after["state"], after["releases"], after["attempt_number"], after["crashes"]) == ("pending", 1, 0, 0)
    assert attempts_of(connection, run) == []
