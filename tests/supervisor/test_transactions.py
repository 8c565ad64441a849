"""Promise 4: what a step writes through `cx.tx` takes effect with its hand-over, once, or not at all."""

import os
import signal
import threading
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from apps import late_threads, transactions
from apps.transactions import Order
from db import dump, finish, go_on, insert_held, spawn, value
from harness import Supervisor, eventually, outcomes
from pgbouncer import pgbouncer
from proxy import Proxy
from psycopg.conninfo import make_conninfo
from test_crossing import waits
from test_fence import SITUATIONS, TOKENS, US, pair

from underway import RunFailed, Status, Underway, UnderwayError
from underway.client.run import Run
from underway.postgres.step_transaction import StepTransactions
from underway.postgres.transitions import AdvanceRun, FinishRun
from underway.supervisor.exit_codes import ExitCode

Start = Callable[..., Supervisor]
Effects = Callable[[], list[tuple[UUID, str, int]]]
Connection = psycopg.Connection[Any]


@pytest.fixture
def effects(connection: Connection, bind: Callable[[Underway], Underway]) -> Effects:
    """The effects that were committed, by run, step and attempt."""
    bind(transactions.app)
    connection.execute(transactions.TABLES)

    def look() -> list[tuple[UUID, str, int]]:
        return connection.execute("select run, step, attempt from effect order by run, step").fetchall()

    return look


def serve(start: Start, *options: str) -> Supervisor:
    """With one worker, unless the options say otherwise."""
    return start("transactions", "--procs", "1", *options)


def wait_for_step(folder: Path) -> int:
    """Wait until the step runs. Returns the PID of its worker."""

    def look() -> int:
        file = folder / "here"
        return int(file.read_text() or 0) if file.exists() else 0

    return eventually(look)


def ended(run: Run[Any]) -> list[tuple[str, int, str]]:
    return [(attempt.step, attempt.number, attempt.outcome) for attempt in run.attempts()]


def test_writes_take_effect_with_the_hand_over_and_failures_leave_nothing(
    effects: Effects, connection: Connection, start_supervisor: Start
) -> None:
    good = [
        transactions.once.enqueue(Order(name, 1)) for name in ("write_one", "enqueue", "recover", "keep_connection")
    ]
    pair = transactions.pairs.enqueue(Order("nothing", 2))
    threads = transactions.once.enqueue(Order("write_in_threads", 4))
    bad = {name: transactions.once.enqueue(Order(name, 3)) for name in transactions.failures}
    assert serve(start_supervisor, "--until-idle").wait(60) == 0
    assert [run.result() for run in good] == [1, 1, 1, 1]
    assert ended(pair) == [("first", 1, "succeeded"), ("last", 1, "succeeded")]
    assert threads.result() == 4, "threads that use cx.tx at the same time share one transaction"
    expected = [(run.id, "do", 1) for run in good] + [(pair.id, "first", 1), (pair.id, "last", 1)]
    assert sorted(effects()) == sorted(expected + [(threads.id, "do", 1)] * 4)
    wrong = []
    for name, run in bad.items():
        (attempt,) = run.attempts()
        if (run.status(), attempt.outcome) != (Status.FAILED, "failed") or transactions.failures[name] not in (
            attempt.error or ""
        ):
            wrong.append((name, run.status(), attempt))
    assert wrong == []
    # Of the runs that were enqueued in a step, only those of the step that succeeded exist.
    query = "select result::text::int from underway.finished_run where job = 'children' order by 1"
    inputs = connection.execute(query).fetchall()
    assert inputs == [(1,), (2,), (3,), (4,)]
    assert connection.execute("select sum(value) from counter where id not in (4, 5)").fetchone() == (0,)
    assert good[0].attempts()[0].cpu_seconds is not None


def test_a_thread_that_uses_cx_tx_while_its_step_ends_harms_no_other_run(
    bind: Callable[[Underway], Underway], connection: Connection, start_supervisor: Start
) -> None:
    bind(late_threads.app)
    leaves = late_threads.leaves.enqueue()
    nothings = late_threads.nothings.enqueue_many(range(20))
    supervisor = start_supervisor("late_threads", "--procs", "1", "--until-idle")
    assert supervisor.wait(60) == ExitCode.CLEAN
    assert leaves.status() in (Status.SUCCEEDED, Status.FAILED)  # depending on whether the thread was in time
    assert outcomes(connection).get("succeeded", 0) >= len(nothings)
    assert {run.status() for run in nothings} == {Status.SUCCEEDED}


# The connection


def test_a_step_that_does_not_use_it_costs_no_connection(effects: Effects, start_supervisor: Start) -> None:
    runs = [transactions.once.enqueue(Order("count_connections")) for _ in range(5)]
    transactions.app.close()
    assert serve(start_supervisor, "--until-idle", "--procs", "3").wait() == 0
    assert [run.result() for run in runs] == [2] * 5, "the connections of the supervisor"


def test_the_connection_stays_open_and_session_changes_are_reset(
    effects: Effects, connection: Connection, start_supervisor: Start
) -> None:
    serve(start_supervisor)

    def result(action: str) -> list[Any]:
        found: list[Any] = transactions.once.enqueue(Order(action)).result(20)
        return found

    before = result("backend")
    assert result("change_session") == before[:2]
    assert result("backend") == before
    assert connection.execute("select pg_try_advisory_lock(7)").fetchone() == (True,)
    assert connection.execute("select from pg_class where relname = 'leftover'").fetchall() == []
    # After a failed step the connection is usable; one that broke while it was idle is reopened.
    with pytest.raises(RunFailed):
        result("violate_unique")
    assert result("backend") == before
    connection.execute("select pg_terminate_backend(%s, 5000)", [before[0]])
    after = result("backend")
    assert after[0] != before[0]
    assert after[1:] == before[1:]


def test_a_step_may_choose_its_isolation_level(
    effects: Effects, connection: Connection, database: str, start_supervisor: Start
) -> None:
    chosen = transactions.once.enqueue(Order("serializable"))
    # The job `leased` is renewed four times a second, which must not invalidate this snapshot.
    repeated = transactions.once.enqueue(Order("repeatable_for_long"))
    assert serve(start_supervisor, "--until-idle").wait() == 0
    assert (chosen.result(), repeated.result()) == ("serializable", "repeatable read")
    given = transactions.once.enqueue(Order("isolation"))
    url = make_conninfo(database, options="-c default_transaction_isolation=serializable")
    assert serve(start_supervisor, "--until-idle", "--database", url).wait() == 0
    assert given.result() == "serializable"
    assert len(effects()) == 3


def test_timeouts_of_the_role_apply_unless_the_step_changes_them(
    effects: Effects, database: str, start_supervisor: Start
) -> None:
    limited, unlimited = (transactions.once.enqueue(Order(how)) for how in ("take_long", "take_long_all_the_same"))
    url = make_conninfo(database, options="-c transaction_timeout=500ms")
    assert serve(start_supervisor, "--until-idle", "--procs", "1", "--database", url).wait() == 0
    (attempt,) = limited.attempts()
    assert (attempt.outcome, limited.status()) == ("failed", Status.FAILED)
    assert "terminating connection due to transaction timeout" in (attempt.error or "")
    assert unlimited.status() is Status.SUCCEEDED
    assert [run for run, _, _ in effects()] == [unlimited.id]


def test_an_interrupt_reaches_a_step_that_waits_for_postgres(
    effects: Effects, connection: Connection, start_supervisor: Start, tmp_path: Path
) -> None:
    serve(start_supervisor)
    before = transactions.once.enqueue(Order("backend")).result(20)
    run = transactions.short.enqueue(Order("", folder=str(tmp_path)))
    assert run.wait(20) is Status.FAILED
    (attempt,) = run.attempts()
    assert attempt.outcome == "timed_out"
    assert "Interrupt" in (attempt.error or ""), "interrupted, not killed"
    assert (tmp_path / "cleaned").exists()
    eventually(lambda: not sleeping(connection))
    assert connection.execute("select value from counter where id = 1").fetchone() == (0,)
    after = transactions.once.enqueue(Order("backend")).result(20)
    assert after[1] == before[1], "the worker lives"


def test_a_supervisor_that_stops_rolls_back_and_releases(
    effects: Effects, connection: Connection, start_supervisor: Start, tmp_path: Path
) -> None:
    run = transactions.again.enqueue(Order("wait_in_postgres", folder=str(tmp_path)))
    supervisor = serve(start_supervisor, "--grace", "0")
    wait_for_step(tmp_path)
    supervisor.send(signal.SIGTERM)
    assert supervisor.wait() == ExitCode.KILLED_WORK
    assert (ended(run), effects(), sleeping(connection)) == ([("do_in_the_end", 1, "released")], [], 0)


# Deaths


def test_a_query_ends_with_its_worker(
    effects: Effects, connection: Connection, start_supervisor: Start, tmp_path: Path
) -> None:
    run = transactions.again.enqueue(Order("wait_in_postgres", folder=str(tmp_path)))
    serve(start_supervisor)
    os.kill(wait_for_step(tmp_path), signal.SIGKILL)
    eventually(lambda: not sleeping(connection))
    assert run.result(20) == "survived"
    assert [outcome for _, _, outcome in ended(run)] == ["crashed", "succeeded"]
    assert effects() == [(run.id, "do_in_the_end", 2)]


def test_a_query_ends_with_its_supervisor_when_its_run_is_taken_back(
    effects: Effects, connection: Connection, start_supervisor: Start, tmp_path: Path
) -> None:
    run = transactions.leased.enqueue(Order("wait_in_postgres", folder=str(tmp_path)))
    first = serve(start_supervisor)
    wait_for_step(tmp_path)
    second = serve(start_supervisor)
    second.until("serving")
    first.send(signal.SIGKILL)
    assert run.result(20) == "survived"
    assert not sleeping(connection)
    assert [outcome for _, _, outcome in ended(run)] == ["lost", "succeeded"]
    assert effects() == [(run.id, "do_in_the_end", 2)]


def sleeping(connection: Connection) -> int:
    """How many queries of steps run in Postgres."""
    row = connection.execute(
        "select count(*) from pg_stat_activity where datname = current_database() and query = 'select pg_sleep(600)'"
    ).fetchone()
    assert row is not None
    return int(row[0])


# Losing the run


@pytest.mark.parametrize("what", ["lost", "cancelled"])
def test_a_run_that_was_lost_or_cancelled_is_not_handed_over(
    effects: Effects, connection: Connection, start_supervisor: Start, tmp_path: Path, what: str
) -> None:
    run = transactions.once.enqueue(Order("wait_in_python", folder=str(tmp_path)))
    supervisor = serve(start_supervisor)
    wait_for_step(tmp_path)
    if what == "lost":
        connection.execute("update underway.run set token = nextval('underway.token'), owner = gen_random_uuid()")
    else:  # without telling the supervisor, which would interrupt the step
        connection.execute("update underway.run set cancel_requested = true")
    before = connection.execute("select r::text from underway.run r").fetchall()
    (tmp_path / "go").touch()
    supervisor.until("the run was cancelled, or taken over")
    if what == "lost":
        supervisor.until("lease lost")
        assert connection.execute("select r::text from underway.run r").fetchall() == before
    else:
        assert run.wait(20) is Status.CANCELLED
    assert effects() == []
    assert [outcome for _, _, outcome in ended(run)] == ([] if what == "lost" else ["cancelled"])


# A connection that breaks around its COMMIT


def test_a_lost_answer_to_commit_changes_nothing(effects: Effects, database: str, start_supervisor: Start) -> None:
    with Proxy(database, "lose the answer") as proxy:
        run = transactions.pairs.enqueue(Order("nothing"))
        supervisor = serve(start_supervisor, "--until-idle", "--database", proxy.url)
        assert supervisor.wait() == 0
    assert proxy.done
    assert ended(run) == [("first", 1, "succeeded"), ("last", 1, "succeeded")]
    assert effects() == [(run.id, "first", 1), (run.id, "last", 1)]
    assert "attempt succeeded after all" in supervisor.log


@pytest.mark.parametrize("how", ["cut", "black hole"])
def test_a_commit_that_does_not_arrive_is_a_failed_attempt(
    effects: Effects, database: str, start_supervisor: Start, how: str
) -> None:
    with Proxy(database, how) as proxy:
        run = transactions.pairs.enqueue(Order("nothing"))
        assert serve(start_supervisor, "--until-idle", "--database", proxy.url).wait() == 0
    assert proxy.done
    assert ended(run) == [("first", 1, "failed"), ("first", 2, "succeeded"), ("last", 1, "succeeded")]
    assert effects() == [(run.id, "first", 2), (run.id, "last", 1)]


@pytest.mark.parametrize("job", ["pairs", "once"])
def test_a_worker_killed_between_its_commit_and_its_report_has_succeeded(
    effects: Effects, database: str, start_supervisor: Start, tmp_path: Path, job: str
) -> None:
    with Proxy(database, "lose the answer", lambda: os.kill(wait_for_step(tmp_path), signal.SIGKILL)) as proxy:
        run = getattr(transactions, job).enqueue(Order("tell_pid", folder=str(tmp_path)))
        supervisor = serve(start_supervisor, "--until-idle", "--database", proxy.url)
        assert supervisor.wait() == 0
    assert run.status() is Status.SUCCEEDED
    assert {outcome for _, _, outcome in ended(run)} == {"succeeded"}
    assert [attempt for _, _, attempt in effects()] == [1] * len(run.attempts())
    assert "attempt succeeded after all" in supervisor.log


def test_a_renewal_while_the_answer_to_commit_is_late_does_not_lose_the_run(
    effects: Effects, database: str, start_supervisor: Start
) -> None:
    with Proxy(database, "be late", lambda: time.sleep(0.8)) as proxy:
        run = transactions.leased.enqueue(Order("write_one", 5))
        supervisor = serve(start_supervisor, "--until-idle", "--database", proxy.url)
        assert supervisor.wait() == 0
    assert (proxy.done, run.result()) == (True, 5)
    assert "lease lost" not in supervisor.log


# The fence


@pytest.mark.parametrize("kind", [finish, go_on])
def test_only_the_token_of_our_own_running_attempt_hands_over(
    any_database: str, any_connection: Connection, kind: Callable[[str, int], FinishRun | AdvanceRun]
) -> None:
    """Promise 2 for `cx.tx`; test_fence has the same for the statements of a supervisor."""
    connection = any_connection
    connection.execute("alter table underway.run drop constraint run_state")  # only the fence protects the run
    own = StepTransactions(any_database, US, "testhost")
    wrong = []
    for situation, token in product(SITUATIONS, TOKENS):
        for run, number in pair(connection, situation, token):
            before = dump(connection)
            own.begin(number)
            refused = False
            try:
                own.commit(kind(run, number), [spawn(parent=number)])
            except UnderwayError:
                refused = True
                own.roll_back()
            if (refused, dump(connection) == before) != ((situation, token) != ("in progress", "right"),) * 2:
                wrong.append((situation, token, refused))
    own.close()
    assert wrong == []


def test_a_hand_over_waits_for_a_row_that_is_briefly_locked(database: str, connection: Connection) -> None:
    run, token = insert_held(connection, US)
    own = StepTransactions(database, US, "testhost")
    own.begin(token)
    with psycopg.connect(database) as stranger:
        stranger.execute("select from underway.run for update")
        committing = threading.Thread(target=own.commit, args=[finish(run, token), []])
        committing.start()
        eventually(lambda: waits(connection), what="it waits for the row")
        stranger.rollback()
    committing.join(10)
    own.close()
    assert connection.execute("select state from underway.finished_run").fetchall() == [("succeeded",)]


def test_a_delay_counts_from_the_hand_over(database: str, connection: Connection) -> None:
    run, token = insert_held(connection, US)
    own = StepTransactions(database, US, "testhost")
    tx = own.begin(token)
    tx.execute("select now()")
    handed_over_at = value(connection, "select clock_timestamp()")
    own.commit(go_on(run, token, delay=60.0), [])
    own.close()
    assert value(connection, "select due_at - interval '60 s' >= %s from underway.run", [handed_over_at])


# Behind a pooler


def test_cx_tx_works_behind_pgbouncer_in_transaction_mode(
    effects: Effects, connection: Connection, database: str, start_supervisor: Start, tmp_path: Path
) -> None:
    with pgbouncer(database, tmp_path) as url:
        serve(start_supervisor, "--database", url)
        pair = transactions.pairs.enqueue(Order("nothing"))
        stray = transactions.once.enqueue(Order("commit_and_go_on"))
        chosen = transactions.once.enqueue(Order("serializable"))
        assert pair.wait(20) is Status.SUCCEEDED
        assert stray.wait(20) is Status.FAILED
        assert chosen.result(20) == "serializable"
        run = transactions.again.enqueue(Order("wait_in_postgres", folder=str(tmp_path)))
        os.kill(wait_for_step(tmp_path), signal.SIGKILL)
        eventually(lambda: not sleeping(connection))
        assert run.result(20) == "survived"
    expected = [(pair.id, "first", 1), (pair.id, "last", 1), (chosen.id, "do", 1), (run.id, "do_in_the_end", 2)]
    assert sorted(effects()) == sorted(expected)
