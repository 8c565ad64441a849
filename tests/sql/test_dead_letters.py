"""A run that fails for good gets the dead-letter label of its queue, and can then be redriven or discarded."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import psycopg
import pytest
from apps import letters
from db import AGES_AGO, Connection, finish, insert, insert_held, row_of, value, with_store
from harness import Supervisor, eventually
from underway_command import document

from underway import DeadLetter, InvalidOption, PayloadError, Run, RunCancelled, Status, Underway, UnknownJob, aio
from underway.client.dead_letters import UNCHANGED
from underway.definition.manifest import Queue
from underway.ids import new_id
from underway.postgres import admin_queries, client_queries
from underway.postgres.supervisor_store import Store

US = uuid4()


@pytest.fixture
def app(bind: Callable[[Underway], Underway]) -> Underway:
    app = bind(letters.app)
    app.sync()
    return app


def failed(connection: Connection, label: str | None = "dead", **columns: Any) -> str:
    """A run that has failed for good."""
    run = insert(connection, **columns, state="waiting")
    assert client_queries.cancel(connection, UUID(run))
    connection.execute(
        "update underway.finished_run set state = 'failed', error = 'oh', dead_letter = %s where id = %s", [label, run]
    )
    return run


def label_of(connection: Connection, run: str) -> str | None:
    row = row_of(connection, "finished_run", run)
    assert row is not None
    label: str | None = row["dead_letter"]
    return label


# Labels


@pytest.mark.parametrize("queue", ["with", "without", "unknown"])
def test_only_runs_that_failed_for_good_are_labelled(any_database: str, queue: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        connection.execute("insert into underway.queue (name, dead_letter) values ('with', 'dead'), ('without', null)")
        held = {state: insert_held(connection, US, queue=queue) for state in ("succeeded", "failed", "cancelled")}
        client_queries.cancel(connection, UUID(held["cancelled"][0]))
        expired, _ = insert_held(connection, US, queue=queue, lease_expires_at=AGES_AGO, crashes=2)
        stopped, _ = insert_held(connection, US, queue=queue, lease_expires_at=AGES_AGO, cancel_requested=True)
        waiting = insert(connection, queue=queue)
        client_queries.cancel(connection, UUID(waiting))

        async def end(store: Store) -> None:
            rows = [
                finish(run, token, state=state, payload=b"1" if state == "succeeded" else None)
                for state, (run, token) in held.items()
            ]
            assert len(await store.finish(rows, [])) == 3
            assert len(await store.reap(10)) == 2

        with_store(any_database, end, US)
        label = "dead" if queue == "with" else None
        assert label_of(connection, held["failed"][0]) == label
        assert label_of(connection, expired) == label
        for run in (held["succeeded"][0], held["cancelled"][0], stopped, waiting):
            assert label_of(connection, run) is None


def test_a_queue_is_registered_and_changed_and_stays_paused(database: str, connection: Connection) -> None:
    async def register(store: Store) -> None:
        await store.register_queue("pdf", "dead")
        admin_queries.pause(connection, "pdf")
        with psycopg.connect(database) as pausing:  # registering does not wait for this transaction
            pausing.execute("select from underway.queue for update")
            await asyncio.wait_for(store.register_queue("pdf", "skipped"), 20)
        assert connection.execute("select * from underway.queue").fetchall() == [("pdf", True, "dead")]
        await store.register_queue("pdf", "other")
        await store.register_queue("plain", None)

    with_store(database, register)
    rows = connection.execute("select * from underway.queue order by name").fetchall()
    assert rows == [("pdf", True, "other"), ("plain", False, None)]


def test_the_declaration_of_a_queue_is_checked() -> None:
    app = Underway()
    app.queue("pdf", dead_letter="dead")
    app.queue("pdf", dead_letter="dead")
    assert app.manifest().queues == (Queue("pdf", "dead"),)
    with pytest.raises(InvalidOption, match="queue 'pdf' is declared twice"):
        app.queue("pdf")
    for queue, label in (("", "dead"), ("x", ""), ("x" * 201, None), ("x", "a\0")):
        with pytest.raises(InvalidOption, match=r"must (be a string of 1 to 200 characters|not contain NUL)"):
            app.queue(queue, dead_letter=label)


# Redrive


def test_a_redriven_run_starts_again_at_the_step_that_failed(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        run = failed(connection, step="second", attempts=5, crashes=2, releases=1, attempt_number=7, priority=3)
        created = value(connection, "select created_at from underway.finished_run")
        assert admin_queries.redrive(connection, UUID(run))
        assert not admin_queries.redrive(connection, UUID(run))
        assert value(connection, "select count(*) from underway.finished_run") == 0
        row = row_of(connection, "run", run)
        assert row is not None
        counters = [row[name] for name in ("attempt_number", "attempts", "crashes", "releases")]
        assert (row["state"], row["step"], row["input"], counters) == ("pending", "second", {"n": 1}, [0, 0, 0, 0])
        assert value(connection, "select created_at from underway.run") == created
        assert value(connection, "select extract(epoch from due_at - rank)::int from underway.run") == 180
        assert value(connection, "select due_at between now() - interval '1 minute' and now() from underway.run")


def test_only_failed_runs_are_redriven(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        live, succeeded = insert(connection), failed(connection)
        connection.execute("update underway.finished_run set state = 'succeeded' where id = %s", [succeeded])
        for run in (live, succeeded, str(new_id())):
            assert not admin_queries.redrive(connection, UUID(run))


def test_a_cancelled_run_is_never_redriven(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        run = failed(connection)
        assert admin_queries.redrive(connection, UUID(run))
        client_queries.cancel(connection, UUID(run))
        for again in (
            lambda: admin_queries.redrive(connection, UUID(run)),
            lambda: admin_queries.failed_step(connection, UUID(run)),
        ):
            with pytest.raises(
                RunCancelled, match=f"run {run} was cancelled, and cancellation is final: enqueue its input"
            ):
                again()
        with pytest.raises(psycopg.DatabaseError, match="enqueue its input again") as refused:
            connection.execute("select underway.redrive(%s)", [run])
        assert refused.value.sqlstate == "UW004"
        assert admin_queries.redrive_label(connection, "dead") == 0
        other = failed(connection)
        assert value(connection, "select underway.redrive_runs(%s::uuid[])", [[run, other, str(new_id())]]) == 1
        assert client_queries.status(connection, UUID(other)) == "pending"
        assert client_queries.status(connection, UUID(run)) == "cancelled"


def test_only_one_run_with_a_unique_key_is_redriven(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        first, second = failed(connection, unique_key="key"), failed(connection, unique_key="key")
        other_job = failed(connection, unique_key="key", job="another")
        plain = [failed(connection), failed(connection)]
        assert admin_queries.redrive_label(connection, "dead") == 4
        assert {client_queries.status(connection, UUID(run)) for run in (first, other_job, *plain)} == {"pending"}
        assert client_queries.status(connection, UUID(second)) == "failed"
        assert not admin_queries.redrive(connection, UUID(second))
        assert client_queries.cancel(connection, UUID(first))
        assert admin_queries.redrive(connection, UUID(second))


def test_a_limit_takes_the_oldest_and_a_new_input_replaces_the_old(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        oldest, newer = failed(connection), failed(connection)
        assert admin_queries.redrive_label(connection, "dead", 1) == 1
        assert client_queries.status(connection, UUID(oldest)) == "pending"
        assert admin_queries.redrive(connection, UUID(newer), b'{"n": 2}')
        assert value(connection, "select input from underway.run where id = %s", [newer]) == {"n": 2}
        nothing = failed(connection)
        assert admin_queries.redrive(connection, UUID(nothing), b"null")
        assert value(connection, "select input::text = 'null' from underway.run where id = %s", [nothing])


def test_a_new_input_is_stored_as_it_is_written(database: str, connection: Connection) -> None:
    """jsonb would write 9.5e18 as an integer, so the step would not get a float."""
    run = failed(connection)
    assert admin_queries.redrive(connection, UUID(run), b"[9.5e18, 1.0, -0.0]")
    assert value(connection, "select input::text from underway.run where id = %s", [run]) == "[9.5e18, 1.0, -0.0]"


def test_a_redriven_run_with_a_concurrency_key_waits_in_line(database: str, connection: Connection) -> None:
    run = failed(connection, concurrency_key="key", concurrency_limit=2)
    assert admin_queries.redrive(connection, UUID(run))
    row = row_of(connection, "run", run)
    assert row is not None
    assert (row["state"], row["concurrency_key"], row["concurrency_limit"]) == ("waiting", "key", 2)


def test_redriving_notifies_idle_supervisors(database: str, connection: Connection) -> None:
    failed(connection, queue="a"), failed(connection, queue="a"), failed(connection, queue="b")

    async def idle(store: Store) -> None:
        await store.register(pid=1, app="app")
        await store.set_idle(True)

    with_store(database, idle)
    with psycopg.connect(database, autocommit=True) as listener:
        listener.execute("listen underway")
        assert admin_queries.redrive_label(connection, "dead") == 3
        heard = {notify.payload for notify in listener.notifies(timeout=10, stop_after=2)}
    assert heard == {"a", "b"}


def test_a_discarded_run_stays_readable(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        first, second, third = (failed(connection) for _ in range(3))
        other = failed(connection, "other")
        assert admin_queries.discard(connection, UUID(first))
        assert not admin_queries.discard(connection, UUID(first))
        assert admin_queries.discard_label(connection, "dead") == 2
        assert admin_queries.discard_label(connection, "dead") == 0
        assert [label_of(connection, run) for run in (first, second, third, other)] == [None, None, None, "other"]
        assert client_queries.status(connection, UUID(second)) == "failed"
        assert admin_queries.redrive(connection, UUID(second)), "a run needs no label to be redriven"


def test_calls_on_the_callers_connection_are_part_of_its_transaction(
    app: Underway, connection: Connection, database: str
) -> None:
    run = UUID(failed(connection, job="rendering", step="render"))
    calls: list[Callable[[Connection], int]] = [
        lambda conn: app.redrive(run, conn=conn),
        lambda conn: app.redrive(run, input="other", conn=conn),
        lambda conn: app.redrive("dead", conn=conn),
        lambda conn: app.discard(run, conn=conn),
        lambda conn: app.discard("dead", conn=conn),
    ]
    query = "select state, dead_letter, input from underway.runs"
    before = connection.execute(query).fetchall()
    with psycopg.connect(database) as conn:
        for call in calls:
            for _ in range(2):
                assert call(conn) == 1
                assert conn.execute(query).fetchall() != before
                assert connection.execute(query).fetchall() == before
                conn.rollback()
                assert connection.execute(query).fetchall() == before
        assert app.redrive(run, input="other", conn=conn) == 1
        conn.commit()
    assert connection.execute(query).fetchall() == [("pending", None, "other")]
    wrong: Any = "me"
    with pytest.raises(InvalidOption, match=r"psycopg\.Connection"):
        app.redrive(run, conn=wrong)
    with pytest.raises(InvalidOption, match=r"psycopg\.Connection"):
        app.discard(run, conn=wrong)


def test_a_run_id_may_be_given_as_text(app: Underway, connection: Connection) -> None:
    run, other = (failed(connection, job="rendering", step="render") for _ in range(2))
    assert app.discard(run) == 1
    assert (label_of(connection, run), label_of(connection, other)) == (None, "dead")
    assert app.redrive(UUID(run).hex, input="well") == 1
    assert value(connection, "select input from underway.run where id = %s", [run]) == "well"
    assert app.redrive(run) == 0
    with pytest.raises(InvalidOption, match="limit= applies to a label"):
        app.redrive(other, limit=1)


@pytest.mark.parametrize("method", ["redrive", "discard"])
def test_an_unknown_label_is_refused_with_a_list_of_the_existing_ones(
    app: Underway, connection: Connection, method: str
) -> None:
    call = getattr(app, method)
    declared = sorted(app.registry.labels())
    for label in declared:  # a declared label is known, even if no run has it
        assert call(label) == 0
    unknown = r"^unknown dead-letter label 'ded'; existing: "
    with pytest.raises(InvalidOption, match=f"{unknown}{', '.join(map(repr, declared))}$"):
        call("ded")
    failed(connection, "dead")
    failed(connection, "another")
    failed(connection, "another")
    connection.execute("insert into underway.queue (name, dead_letter) values ('mail', 'mail-dead')")
    known = ", ".join(map(repr, sorted({*declared, "another", "dead", "mail-dead"})))
    with pytest.raises(InvalidOption, match=f"{unknown}{known}$"), app.connection() as caller:
        call("ded", conn=caller)
    assert (call("another"), call("dead"), call("mail-dead")) == (2, 1, 0)


def test_a_label_that_looks_like_a_run_id_is_refused(app: Underway) -> None:
    run = new_id()
    for given in (str(run), run.hex, str(run).upper()):
        message = f"must be a dead-letter label, not a run ID: '{given}'"
        with pytest.raises(InvalidOption, match=f"^dead_letter {message}"):
            Underway().queue("pdf", dead_letter=given)
        with pytest.raises(InvalidOption, match=f"^label {message}"):
            app.dead_letters(given)
    wrong: Any = run
    with pytest.raises(InvalidOption, match="label must be a string"):
        app.dead_letters(wrong)


# From Python, with a supervisor


def test_from_failure_to_redrive(
    app: Underway, connection: Connection, start_supervisor: Callable[..., Supervisor]
) -> None:
    ways = ("gives up", "is used up", "crashes")
    started = {how: letters.rendering.enqueue(how) for how in ways}
    start_supervisor("letters", "--procs", "2")
    for run in started.values():
        assert run.wait(20) is Status.FAILED
    found = app.dead_letters("pdf-dead")
    assert {letter.run for letter in found} == set(started.values())
    assert sorted(found, key=lambda letter: letter.finished_at) == found
    letter: DeadLetter = next(letter for letter in found if letter.input == "is used up")
    assert (letter.job, letter.step, letter.queue) == ("rendering", "render", "pdf")
    assert (letter.attempts, letter.crashes) == (2, 0)
    assert "again" in str(letter.error)
    assert len(app.dead_letters("pdf-dead", limit=2)) == 2
    assert app.dead_letters("another") == []

    assert app.redrive(letter.run, input="well") == 1
    assert letter.run.result(20) == "rendered well, attempt 1"
    assert [(attempt.step, attempt.number, attempt.outcome) for attempt in letter.run.attempts()] == [
        ("ask", 1, "succeeded"),
        ("render", 1, "failed"),
        ("render", 2, "failed"),
        ("render", 1, "succeeded"),
    ]
    assert app.redrive(letter.run) == 0
    assert app.discard(started["crashes"]) == 1
    assert app.redrive("pdf-dead") == 1
    eventually(lambda: [letter.input for letter in app.dead_letters("pdf-dead")] == ["gives up"])
    assert app.discard("pdf-dead") == 1
    assert app.redrive(started["gives up"].id, input="now") == 1
    assert started["gives up"].result(20) == "rendered now, attempt 1"


def test_a_refused_redrive_says_why(app: Underway, connection: Connection) -> None:
    run = Run[Any](app.database, UUID(failed(connection, job="rendering", step="render", input='"x"')), Any)
    with pytest.raises(PayloadError):
        app.redrive(run, input=4)
    with pytest.raises(InvalidOption, match="not a label"):
        app.redrive("pdf-dead", input="x")
    with pytest.raises(InvalidOption, match="limit= applies to a label"):
        app.redrive(run, limit=3)
    for wrong in (7, None, b"pdf-dead"):
        nonsense: Any = wrong
        for call in (app.redrive, app.discard):
            with pytest.raises(InvalidOption, match="expected a Run, a run ID or a dead-letter label"):
                call(nonsense)
    unknown = UUID(failed(connection, job="unheard-of"))
    with pytest.raises(UnknownJob, match="no step 'step' in job 'unheard-of'"):
        app.redrive(unknown, input=1)
    assert app.redrive(unknown) == 1
    assert app.redrive(new_id(), input=1) == 0
    cancelled = UUID(insert(connection, job="unheard-of"))
    assert app.cancel(cancelled)
    for given in (UNCHANGED, 1):
        with pytest.raises(RunCancelled, match="enqueue its input again"):
            app.redrive(cancelled, input=given)
    assert run.status() is Status.FAILED


# Large numbers of dead letters


def many_failed(connection: Connection, count: int) -> None:
    connection.execute(
        "insert into underway.finished_run (id, created_at, expires_at, keep, attempts, crashes, releases, state,"
        " priority, queue, job, step, dead_letter, quarantined, input) select gen_random_uuid(), now(), now(), '1 day',"
        " 0, 0, 0, 'failed', 0, 'default', 'job', 'step', 'dead', true, '1' from generate_series(1, %s)",
        [count],
    )


Redrive: TypeAlias = Callable[[Connection, int | None], int]


def redrive_async(connection: Connection, limit: int | None) -> int:
    async def redrive() -> int:
        async with await psycopg.AsyncConnection.connect(connection.info.dsn, autocommit=True) as other:
            return await admin_queries.redrive_label.run_async(other, "dead", limit)

    return asyncio.run(redrive())


REDRIVES = pytest.mark.parametrize(
    "redrive",
    [
        lambda connection, limit: admin_queries.redrive_label(connection, "dead", limit),
        redrive_async,
        lambda connection, limit: admin_queries.release_quarantined(connection, None, limit),
    ],
    ids=["a label", "a label, async", "the quarantine"],
)


@REDRIVES
@pytest.mark.parametrize(("limit", "redriven", "parts"), [(None, 2500, 3), (2100, 2100, 3), (1000, 1000, 1)])
def test_large_numbers_are_redriven_in_several_transactions(
    connection: Connection,
    redrive: Redrive,
    limit: int | None,
    redriven: int,
    parts: int,
) -> None:
    many_failed(connection, 2500)
    assert redrive(connection, limit) == redriven
    assert value(connection, "select count(*) from underway.run") == redriven
    assert value(connection, "select count(distinct xmin::text) from underway.run") == parts


FAIL_AT_ONCE = """
create function pg_temp.fail_at_once() returns trigger language plpgsql as $$
begin
    delete from underway.run where id = new.id;
    insert into underway.finished_run (id, created_at, expires_at, keep, attempts, crashes, releases, state, priority,
        queue, job, step, dead_letter, quarantined, input, finished_at)
    values (new.id, new.created_at, now(), new.keep, 0, 0, 0, 'failed', 0, 'default', new.job, 'step', 'dead', true,
        new.input, clock_timestamp());
    return null;
end
$$;
create trigger fail_at_once after insert on underway.run for each row execute function pg_temp.fail_at_once();
"""


@REDRIVES
def test_a_run_that_has_failed_again_meanwhile_is_not_redriven_twice(connection: Connection, redrive: Redrive) -> None:
    many_failed(connection, 1500)
    connection.execute(FAIL_AT_ONCE)
    try:
        assert redrive(connection, None) == 1500
    finally:
        connection.execute("drop trigger fail_at_once on underway.run")


def test_large_numbers_are_redriven_in_the_callers_transaction(database: str, connection: Connection) -> None:
    many_failed(connection, 2500)
    with psycopg.connect(database) as caller:
        assert admin_queries.redrive_label(caller, "dead") == 2500
        assert value(connection, "select count(*) from underway.run") == 0
        caller.rollback()
    assert value(connection, "select count(*) from underway.run") == 0


def test_runs_that_cannot_be_redriven_do_not_hold_up_the_others(connection: Connection) -> None:
    insert(connection, unique_key="taken")
    many_failed(connection, 2500)
    connection.execute(
        "update underway.finished_run set unique_key = 'taken', finished_at = now() - interval '1 hour'"
        " where id in (select id from underway.finished_run limit 1200)"
    )
    assert admin_queries.redrive_label(connection, "dead") == 1300


@pytest.mark.parametrize("number", ["1e400", "-1e999", "9" * 5000])
def test_a_number_beyond_python_does_not_hide_other_dead_letters(
    app: Underway, connection: Connection, number: str
) -> None:
    failed(connection, input="1")
    failed(connection, input=number)
    assert sorted(str(letter.input) for letter in app.dead_letters("dead")) == sorted(["1", number])
    job = next(iter(app.jobs.values()))
    connection.execute(
        "insert into underway.schedule (job, name, cron, zone, input, next_at)"
        " values (%s, 'n', '@daily', 'UTC', %s, now())",
        [job.name, number],
    )
    assert [schedule.input for schedule in app.schedules()] == [number]
    assert document("schedules", database=app.database.checked_conninfo())[0]["input"] == number


@pytest.mark.parametrize("limit", [0, -1, 1.0, True, "1", 2**31])
def test_an_invalid_limit_is_refused(app: Underway, limit: Any) -> None:
    for refused in (
        lambda: app.redrive("dead", limit=limit),
        lambda: app.dead_letters("dead", limit=limit),
        lambda: app.quarantined(limit=limit),
    ):
        with pytest.raises(InvalidOption, match="limit must be an integer from 1"):
            refused()


@pytest.mark.parametrize("text", ["", "a\0b", "a\ud800"])
def test_text_that_cannot_be_stored_is_refused(app: Underway, text: str) -> None:
    (job, *_) = app.jobs.values()
    for refused in (
        lambda: app.redrive(text),
        lambda: app.discard(text),
        lambda: app.dead_letters(text),
        lambda: job.cancel(unique_key=text),
        lambda: job.cancel(concurrency_key=text),
        lambda: asyncio.run(aio.cancel(job, unique_key=text)),
    ):
        with pytest.raises(InvalidOption, match=r"must (be a string|not contain NUL)"):
            refused()
