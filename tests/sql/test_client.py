"""Enqueueing on any connection, the methods of a `Run`, and `app.run()`."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psutil
import psycopg
import pytest
from apps import clients
from apps.clients import STRANGE, Order
from harness import Supervisor, eventually, states
from places import APPS
from psycopg import sql
from psycopg.rows import dict_row, namedtuple_row

from underway import (
    Context,
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
)
from underway.client import current_step
from underway.client.run import Run
from underway.definition.job_definition import JobDefinition

Bind = Callable[[Underway], Underway]
Start = Callable[..., Supervisor]
Connection = psycopg.Connection[Any]


@pytest.fixture
def app(bind: Bind) -> Underway:
    return bind(clients.app)


def row(connection: Connection, run: Run[Any]) -> dict[str, Any]:
    """The live row of a run."""
    with connection.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute("select * from underway.run where id = %s", [run.id]).fetchone()
    assert found is not None
    return found


def count(connection: Connection) -> int:
    found = connection.execute("select count(*) from underway.run").fetchone()
    assert found is not None
    return int(found[0])


# Enqueue


def test_enqueue_on_the_apps_own_connection(app: Underway, connection: Connection) -> None:
    run = clients.orders.enqueue(Order(7, "x"))
    found = row(connection, run)
    assert (found["job"], found["step"], found["queue"], found["state"]) == (
        "orders",
        "keep_order",
        "default",
        "pending",
    )
    assert found["input"] == {"number": 7, "note": "x"}
    assert (found["priority"], found["attempts"], found["token"]) == (0, 0, 0)
    assert found["due_at"] == found["rank"]
    assert found["keep"] == timedelta(days=14)
    assert run.id.version == 7
    assert run.status() is Status.PENDING
    assert repr(run) == f"<Run {run.id}>"


def test_enqueue_in_the_callers_transaction(app: Underway, database: str, connection: Connection) -> None:
    with psycopg.connect(database) as caller:
        kept = clients.orders.enqueue(Order(1), conn=caller)
        many = clients.orders.enqueue_many([Order(2), Order(3)], conn=caller)
        assert count(connection) == 0  # other sessions do not see it yet
        with pytest.raises(RunNotFound):
            kept.status()
        caller.commit()
        assert [run.status() for run in (kept, *many)] == ["pending"] * 3
        gone = clients.orders.enqueue(Order(4), conn=caller)
        clients.orders.enqueue_many([Order(5)], conn=caller)
        caller.rollback()
        assert count(connection) == 3
        with pytest.raises(RunNotFound, match=f"no run with ID {gone.id}: it was never committed"):
            gone.status()
        assert caller.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_enqueue_in_a_savepoint(app: Underway, database: str, connection: Connection) -> None:
    class UndoError(Exception):
        pass

    with psycopg.connect(database) as caller, caller.transaction():
        clients.orders.enqueue(Order(1), conn=caller)
        with pytest.raises(UndoError), caller.transaction():  # noqa: PT012
            clients.orders.enqueue(Order(2), conn=caller)
            clients.orders.enqueue_many([Order(3), Order(4)], conn=caller)
            raise UndoError
        with caller.transaction():
            clients.orders.enqueue_many([Order(5)], conn=caller)
        with pytest.raises(PayloadError):
            clients.orders.enqueue_many([Order(6), Order("x")], conn=caller)  # type: ignore[arg-type]
        # a failed enqueue_many is undone and leaves the caller's transaction usable
        clients.orders.enqueue(Order(7), conn=caller)
    found = connection.execute("select (input->>'number')::int from underway.run order by 1").fetchall()
    assert found == [(1,), (5,), (7,)]


@pytest.mark.parametrize("row_factory", [dict_row, namedtuple_row])
@pytest.mark.parametrize("autocommit", [True, False])
def test_settings_of_the_callers_connection_do_not_matter(
    app: Underway, database: str, connection: Connection, row_factory: Any, autocommit: bool
) -> None:
    with psycopg.connect(database, row_factory=row_factory, autocommit=autocommit) as caller:
        caller.execute("set search_path = pg_catalog; set datestyle = 'SQL, DMY'; set intervalstyle = 'iso_8601'")
        caller.execute("set timezone = 'Asia/Kathmandu'")
        clients.placed.enqueue(1, conn=caller)
        clients.placed.enqueue_many([1, 2], conn=caller)
        caller.commit()
    assert count(connection) == 3
    dues = connection.execute("select due_at - clock_timestamp(), keep from underway.run").fetchall()
    for due, keep in dues:
        assert timedelta(hours=1.9) < due <= timedelta(hours=2)
        assert keep == timedelta(days=3, seconds=1.5)


@pytest.mark.parametrize("conn", ["postgresql://x", 1, object()])
def test_a_conn_that_is_not_a_connection_is_refused(app: Underway, conn: Any) -> None:
    with pytest.raises(InvalidOption, match=r"conn must be a psycopg\.Connection, not "):
        clients.orders.enqueue(Order(1), conn=conn)
    with pytest.raises(InvalidOption, match=r"conn must be a psycopg\.Connection, not "):
        clients.orders.enqueue_many([Order(1)], conn=conn)


def test_an_invalid_value_is_refused_before_anything_is_written(app: Underway, connection: Connection) -> None:
    bad: list[Any] = [Order("x"), None, 3, {"number": 1}, Order(1, "nul\0")]  # type: ignore[arg-type]
    for value in bad:
        with pytest.raises(PayloadError):
            clients.orders.enqueue(value)
    assert count(connection) == 0


def test_run_ids_are_in_the_order_of_one_callers_enqueues(app: Underway) -> None:
    runs = [clients.echoes.enqueue(number) for number in range(20)]
    runs += clients.echoes.enqueue_many(range(1000))
    ids = [run.id for run in runs]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


# enqueue_many


def test_enqueue_many_keeps_the_order(app: Underway, connection: Connection) -> None:
    runs = clients.orders.enqueue_many(Order(number) for number in range(10_000))
    assert len(runs) == 10_000
    found = dict(connection.execute("select id, (input->>'number')::int from underway.run").fetchall())
    assert [found[run.id] for run in runs] == list(range(10_000))
    assert connection.execute("select distinct state, step from underway.run").fetchall() == [("pending", "keep_order")]


def test_enqueue_many_is_all_or_nothing(app: Underway, connection: Connection) -> None:
    # enough that part of them has been sent before the bad one
    values: list[Any] = [Order(number, "x" * 1000) for number in range(2000)]
    values[1500] = Order("bad")  # type: ignore[arg-type]
    with pytest.raises(PayloadError, match=r"^value 1500: "):
        clients.orders.enqueue_many(values)

    def failing_values() -> Iterator[Order]:
        yield from values[:1500]
        raise KeyError("theirs")

    with pytest.raises(KeyError, match="theirs"):
        clients.orders.enqueue_many(failing_values())
    assert count(connection) == 0
    assert clients.orders.enqueue_many([]) == []
    assert len(clients.orders.enqueue_many([Order(1)])) == 1


def test_strange_characters_everywhere(app: Underway, connection: Connection) -> None:
    values = [
        STRANGE,
        "\\",
        "\\\\",
        "\\t",
        "\t",
        "\n",
        "\r\n",
        "\\.",
        "\\N",
        "",
        "ü",
        "\u2028",
        "{}",
        {STRANGE: [STRANGE]},
    ]
    runs = [*clients.strange.enqueue_many(values), *[clients.strange.enqueue(value) for value in values]]
    found = {
        found[0]: found[1:]
        for found in connection.execute("select id, input, job, step, queue from underway.run").fetchall()
    }
    for run, value in zip(runs, values + values, strict=True):
        assert found[run.id] == (value, STRANGE, STRANGE, STRANGE)


def test_a_run_is_placed_by_the_options_of_its_step(app: Underway, connection: Connection) -> None:
    for run in (clients.placed.enqueue(1), *clients.placed.enqueue_many([1])):
        found = row(connection, run)
        assert (found["queue"], found["priority"], found["state"]) == ("slow", -7, "waiting")
        assert found["rank"] - found["due_at"] == timedelta(minutes=7)
        assert (
            timedelta(hours=2) - timedelta(minutes=1)
            < found["due_at"] - found["created_at"]
            <= timedelta(hours=2, seconds=1)
        )
        assert found["keep"] == timedelta(days=3, seconds=1.5)


# Run


def test_status_and_timeouts_of_a_wait(app: Underway) -> None:
    pending, waiting = clients.echoes.enqueue(1), clients.placed.enqueue(1)
    assert waiting.status() is Status.WAITING
    assert [status for status in Status if status.final] == ["succeeded", "failed", "cancelled"]
    for timeout in (0.05, timedelta(seconds=0.05), 0):
        with pytest.raises(TimeoutError, match=f"run {pending.id} is still pending after"):
            pending.wait(timeout)
    with pytest.raises(TimeoutError):
        waiting.result(timeout=0.01)
    with pytest.raises(InvalidOption, match="not nan"):
        waiting.wait(float("nan"))
    with pytest.raises(InvalidOption, match="timeout must be a timedelta or a number"):
        waiting.wait("1")  # type: ignore[arg-type]
    assert pending.attempts() == []


def test_a_run_that_does_not_exist(app: Underway) -> None:
    missing = Run[Any](app.database, uuid4(), None)
    for call in (missing.status, missing.wait, missing.result):
        with pytest.raises(RunNotFound, match=str(missing.id)):
            call()
    assert missing.attempts() == []
    assert not missing.cancel()
    with pytest.raises(RunNotFound, match=str(missing.id)):
        app.get_run(missing.id)
    not_ids: list[Any] = ["not an id", "order-receipt", missing, None]
    for wrong in not_ids:
        with pytest.raises(InvalidOption, match=r"invalid run ID .*: expected a UUID"):
            app.get_run(wrong)
        with pytest.raises(InvalidOption, match=r"invalid run ID .*: expected a UUID"):
            app.cancel(wrong)


def test_cancel_before_it_runs(app: Underway, connection: Connection) -> None:
    for run in (clients.echoes.enqueue(1), clients.placed.enqueue(1)):
        assert run.cancel()
        assert not run.cancel()
        assert run.status() is Status.CANCELLED
        assert run.wait() is Status.CANCELLED
        with pytest.raises(RunCancelled, match=f"run {run.id} was cancelled"):
            run.result()
    assert states(connection) == {"cancelled": 2}


def test_get_run_from_another_app_object(app: Underway, database: str) -> None:
    run = clients.orders.enqueue(Order(1))
    for other in (app, Underway(database)):
        for run_id in (run.id, str(run.id)):
            again = other.get_run(run_id)
            assert again == run
            assert hash(again) == hash(run)
            assert again.status() is Status.PENDING
        other.close()
    assert run != run.id


# Through a supervisor


def test_results_attempts_and_errors_of_runs(
    app: Underway, connection: Connection, database: str, start_supervisor: Start
) -> None:
    order = clients.orders.enqueue(Order(7, STRANGE))
    echoed = clients.strange.enqueue({STRANGE: [STRANGE, None, 1.5]})
    failing = clients.failing.enqueue("this")
    hopeless = clients.hopeless.enqueue("that")
    retrying = clients.retrying.enqueue(0.3)
    patient = clients.patient.enqueue(3)
    impatient = clients.patient.enqueue(9)
    leaving = [clients.leaving.enqueue("SystemExit"), clients.leaving.enqueue("KeyboardInterrupt")]
    handing = clients.handing.enqueue(5)
    looking = clients.looking.enqueue()
    dying = clients.dying.enqueue()
    wrong = clients.wrong.enqueue()
    refused = clients.refused.enqueue(str(order.id))
    supervisor = start_supervisor("clients", "--procs", "1")

    assert order.result(20) == Order(7, STRANGE)
    assert echoed.result(20) == {STRANGE: [STRANGE, None, 1.5]}

    # a failing step is tried as often as its policy allows, and the caller sees its last error
    assert failing.wait(20) is Status.FAILED
    with pytest.raises(RunFailed, match=rf"run {failing.id} failed: (?s:.*)ValueError: cannot do this"):
        failing.result()
    attempts = failing.attempts()
    assert [(attempt.step, attempt.number, attempt.outcome) for attempt in attempts] == [
        ("always_fails", number, "failed") for number in (1, 2, 3)
    ]
    for attempt in attempts:
        assert attempt.error is not None
        assert "Traceback" in attempt.error
        assert "ValueError: cannot do this" in attempt.error
        assert attempt.started_at is not None
        assert attempt.started_at.tzinfo is not None
        assert attempt.started_at <= attempt.finished_at
        assert attempt.pid is not None
        assert attempt.host
        assert attempt.cpu_seconds is not None
        assert attempt.cpu_seconds >= 0
        assert attempt.peak_rss is not None
        assert attempt.peak_rss > 2**20
    assert not failing.cancel()
    assert failing.status() is Status.FAILED

    # Fail ends the run without a retry
    with pytest.raises(RunFailed, match="never that"):
        hopeless.result(20)
    assert len(hopeless.attempts()) == 1

    # Retry(after=) replaces the policy's back-off of a minute, and counts as an attempt
    assert retrying.result(20) == 2
    early, late = retrying.attempts()
    assert early.error is not None
    assert "not yet" in early.error
    assert late.started_at is not None
    assert late.started_at - early.finished_at >= timedelta(seconds=0.25)
    assert patient.result(20) == 3
    with pytest.raises(RunFailed, match="again"):
        impatient.result(20)
    assert len(impatient.attempts()) == 3

    # an exception that would end a program fails the attempt, and the error says what to do
    for run, error in zip(leaving, ("SystemExit", "KeyboardInterrupt"), strict=True):
        with pytest.raises(RunFailed, match=rf"the step raised {error}: a step ends by returning To\.next"):
            run.result(20)

    # the delay of a hand-over replaces that of the step
    assert handing.result(20) == "from 5"
    begun, ended = handing.attempts()
    assert ended.started_at is not None
    assert ended.started_at - begun.finished_at >= timedelta(seconds=0.45)

    seen = looking.result(20)
    assert (seen["run"], seen["job"], seen["step"]) == (str(looking.id), "looking", "looks_around")
    assert seen["attempt"] == 1
    assert 0 < seen["left"] <= 100

    with pytest.raises(RunFailed, match="quarantined after 1 crash: the worker died: exit code 1"):
        dying.result(20)
    with pytest.raises(RunFailed, match="PayloadError"):
        wrong.result(20)

    messages = refused.result(20)
    assert [text.split(" inside a step (refused.tries_what_is_refused): ")[0] for text in messages] == [
        "enqueue without conn=",
        "enqueue without conn=",
        "Run.wait",
        "Run.wait",
        "app.run",
    ]
    assert "use cx.enqueue(job, value), or job.enqueue(…, conn=cx.tx) for its options" in messages[0]

    # a result has the type of its job, or is plain JSON in an app that does not know the job
    assert app.get_run(order.id).result() == Order(7, STRANGE)
    other_app = Underway(database)
    assert other_app.get_run(order.id).result() == {"number": 7, "note": STRANGE}
    other_app.close()
    assert supervisor.process.poll() is None


def test_default_settings_of_the_database_do_not_matter(
    app: Underway, connection: Connection, database: str, start_supervisor: Start
) -> None:
    # As an old application may have set them: psycopg parses neither style, and returns bytes for text.
    for setting in (
        "datestyle = 'SQL, DMY'",
        "intervalstyle = 'iso_8601'",
        "timezone = 'Asia/Kathmandu'",
        "client_encoding = 'SQL_ASCII'",
        "array_nulls = off",
        "extra_float_digits = -15",
    ):
        connection.execute(sql.SQL("alter database {} set " + setting).format(sql.Identifier(connection.info.dbname)))
    (many,) = clients.handing.enqueue_many([1])
    runs = [many, clients.handing.enqueue(1)]
    start_supervisor("clients", "--procs", "1")
    for run in runs:
        assert run.result(20) == "from 1"
        for attempt in run.attempts():
            assert abs(attempt.finished_at - datetime.now(UTC)) < timedelta(minutes=1)


def test_runs_enqueued_by_a_step_exist_only_if_the_step_succeeded(
    app: Underway, connection: Connection, start_supervisor: Start
) -> None:
    parent = clients.spawning.enqueue(2)
    childless = clients.spawning.enqueue(99)
    start_supervisor("clients", "--procs", "1")
    echo_id, later_id = parent.result(20)
    assert app.get_run(echo_id).result(20) == "attempt 2"
    assert app.get_run(later_id).status() is Status.WAITING
    assert childless.wait(20) is Status.FAILED
    found = connection.execute("select job, queue, priority, state from underway.runs where job in ('echoes', 'later')")
    assert sorted(found.fetchall()) == [("echoes", "default", 0, "succeeded"), ("later", "tomorrow", 3, "waiting")]


def test_cancel_while_it_runs_or_afterwards(app: Underway, start_supervisor: Start) -> None:
    run, finished = clients.sleeping.enqueue(60), clients.echoes.enqueue(1)
    start_supervisor("clients", "--procs", "2")
    eventually(lambda: run.status() is Status.IN_PROGRESS)
    assert finished.wait(20) is Status.SUCCEEDED
    assert not finished.cancel()
    assert finished.result() == 1


def test_runs_at_the_old_name_of_a_step_resume(app: Underway, connection: Connection, start_supervisor: Start) -> None:
    first, last = clients.renamed.enqueue(1), clients.renamed.enqueue(2)
    connection.execute("update underway.run set step = 'start' where id = %s", [first.id])
    connection.execute("""update underway.run set step = 'last', input = '"x"' where id = %s""", [last.id])
    start_supervisor("clients", "--procs", "1")
    assert (first.result(20), last.result(20)) == ("from 1", "x")
    # an attempt has the step's name in the run's row; later steps have their current name
    assert [attempt.step for attempt in first.attempts()] == ["start", "second"]
    assert [attempt.step for attempt in last.attempts()] == ["last"]


# Inside a step


class _NoWorker:
    state: Any = None

    def report(self, progress: dict[str, Any]) -> None:
        pass

    def spawn(self, job: JobDefinition[Any, Any, Any], value: Any) -> Run[Any]:
        return Run(clients.app.database, UUID(int=0), None)

    def transaction(self) -> Connection:
        raise NotImplementedError

    def logger(self, name: str) -> logging.Logger:
        raise NotImplementedError


@pytest.fixture
def in_a_step() -> Iterator[None]:
    current_step.set_current(
        Context(run=str(uuid4()), job="job", step="step", attempt=1, ends_at=time.time(), worker=_NoWorker())
    )
    yield
    current_step.set_current(None)


@pytest.mark.usefixtures("in_a_step")
def test_a_step_enqueues_on_a_connection_or_through_its_context(
    app: Underway, database: str, connection: Connection
) -> None:
    with pytest.raises(InsideStep, match=r"enqueue without conn= inside a step \(job.step\): use cx.enqueue"):
        clients.echoes.enqueue(1)
    with psycopg.connect(database) as caller:
        run = clients.echoes.enqueue(1, conn=caller)
    with pytest.raises(InsideStep, match=r"Run.wait inside a step \(job.step\): it would block a worker"):
        run.wait()
    assert run.status() is Status.PENDING  # reading is allowed
    assert count(connection) == 1


# No database, no schema


def test_an_app_without_a_database_is_told_how_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNDERWAY_DATABASE_URL", raising=False)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    app = Underway()
    for call in (app.migrate, app.sync, lambda: app.get_run(uuid4())):
        with pytest.raises(
            NoDatabase, match=r"set UNDERWAY_DATABASE_URL .* pass Underway\(database=\.\.\.\).*embedded:"
        ):
            call()


def test_a_missing_schema_is_reported(empty_database: str) -> None:
    app = Underway(empty_database)
    for call in (app.sync, lambda: app.get_run(uuid4())):
        with pytest.raises(SchemaMissing, match="run 'underway migrate'"):
            call()
    with psycopg.connect(empty_database) as caller, pytest.raises(SchemaMissing):
        Underway().job("x").step(clients.echo).enqueue(1, conn=caller)
    assert app.migrate()[0] == "0001_initial"
    assert app.migrate() == []
    with pytest.raises(RunNotFound):
        app.get_run(uuid4())
    app.close()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@127.0.0.1:1/nowhere",
        "host=127.0.0.1 port=1 user=me password=hunter2",
        "postgresql://me:hunter2@127.0.0.1:port/nowhere",
        "postgresql//me:hunter2@127.0.0.1",
        "host=127.0.0.1 password=hunter2 no_such_setting=1",
    ],
)
def test_no_message_contains_the_password(url: str) -> None:
    app = Underway(url)
    with pytest.raises((psycopg.OperationalError, InvalidOption)) as raised:
        app.migrate()
    error: BaseException | None = raised.value
    while error is not None:
        assert "hunter2" not in str(error)
        error = None if error.__suppress_context__ else error.__cause__ or error.__context__


def test_the_pool_opens_again_after_close(app: Underway) -> None:
    run = clients.echoes.enqueue(1)
    app.close()
    app.close()
    assert run.status() is Status.PENDING


# app.run()

PROGRAM = """
import sys
from underway import Context, Done, To, Underway

app = Underway()

def work(cx: Context, value: int) -> Done[int]:
    return To.done(value + 1)

def stay(cx: Context) -> Done:
    import time
    cx.log.warning("step has begun")
    time.sleep(60)
    return To.done()

job = app.job("job").step(work)
staying = app.job("staying").step(stay)

if __name__ == "__main__":
    app.migrate()
    if "stay" in sys.argv:
        staying.enqueue()
        sys.exit(app.run(procs=1))
    run = job.enqueue(41)
    code = app.run(procs=1, until_idle=True)
    print("result", run.result())
    sys.exit(code)
"""


@pytest.mark.parametrize("how", ["file", "module"])
def test_app_run_from_a_program(empty_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setenv("UNDERWAY_DATABASE_URL", empty_database)
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").touch()
    (tmp_path / "pkg" / "program.py").write_text(PROGRAM)
    # a module is found from the working directory, a file from anywhere
    arguments = ["-m", "pkg.program"] if how == "module" else [str(tmp_path / "pkg" / "program.py")]
    cwd = tmp_path if how == "module" else APPS
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "result 42" in done.stdout


def test_app_run_forwards_signals_and_returns_the_exit_code(database: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, str(program), "stay"],
        env={"PATH": "/usr/bin:/bin", "UNDERWAY_DATABASE_URL": database},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "step has begun" in line:
            break
    process.terminate()
    for line in process.stderr:
        if "SIGTERM: finishing what runs" in line:
            break
    process.terminate()  # the second signal: stop at once
    assert process.wait(20) == 1
    process.stderr.close()
    with psycopg.connect(database) as observer:
        assert states(observer) == {"pending": 1}


def run_program(database: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "UNDERWAY_DATABASE_URL": database}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=60)


SHOP = """
from underway import Context, Done, To, Underway

def work(cx: Context, value: int) -> Done[int]:
    return To.done(value + 1)
"""
APP = (
    SHOP
    + """
app = Underway()
job = app.job("job").step(work)
"""
)
RUN = """
run = job.enqueue(41)
assert app.run(procs=1, until_idle=True) == 0
print("result", run.result())
"""
# A program and the modules beside it. Without a __main__ guard, a worker that imported it would enqueue again.
PROGRAMS = {
    "imports the app": ("from shop import app, job" + RUN, {"shop.py": APP}),
    "imports it from a package": ("from pkg.shop import app, job" + RUN, {"pkg/__init__.py": "", "pkg/shop.py": APP}),
    "imports it from a package's init": ("from pkg import app, job" + RUN, {"pkg/__init__.py": APP}),
    "imports it from a package without an init": ("from pkg.shop import app, job" + RUN, {"pkg/shop.py": APP}),
    "imports it by another name": ("import shop as s\nfrom shop import job\napp = s.the_app" + RUN,
                                   {"shop.py": APP.replace("app", "the_app")}),
    "imports it from a module that has imported it": ("from middle import app, job" + RUN,
                                                      {"middle.py": "from shop import *", "shop.py": APP}),
    "loads it from a file": (
        "import importlib.util, pathlib, sys\n"
        "spec = importlib.util.spec_from_file_location('loaded', pathlib.Path(__file__).parent / 'shop.py')\n"
        "shop = sys.modules['loaded'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(shop)\napp, job = shop.app, shop.job" + RUN, {"shop.py": APP}),
    "makes it with an imported factory": (
        "from factory import make\nfrom shop import work\napp = make()\njob = app.job('job').step(work)\n"
        "if __name__ == '__main__':\n" + RUN.replace("\n", "\n    "),
        {"factory.py": "from underway import Underway\ndef make(): return Underway()", "shop.py": SHOP}),
    "adds a job to an app that it imports": (
        SHOP.replace(", Underway", "") + "from shop import app\njob = app.job('added').step(work)\n"
        "if __name__ == '__main__':\n" + RUN.replace("\n", "\n    "),
        {"shop.py": APP}),
    "assigns it to another module": (
        APP + "import extension\nextension.current = app\nif __name__ == '__main__':\n" + RUN.replace("\n", "\n    "),
        {"extension.py": "current = None"}),
}  # fmt: skip


# From another folder, a package without an __init__ looks like a plain folder.
STARTED = [(program, folder) for program in PROGRAMS for folder in ("its folder", "elsewhere")]
STARTED.remove(("imports it from a package without an init", "elsewhere"))


@pytest.mark.parametrize(("name", "folder"), STARTED)
def test_app_run_finds_the_module_that_has_the_app(database: str, tmp_path: Path, name: str, folder: str) -> None:
    program, modules = PROGRAMS[name]
    for file, text in {"program.py": program, **modules}.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    done = run_program(database, str(tmp_path / "program.py"), cwd=tmp_path if folder == "its folder" else APPS)
    assert (done.returncode, done.stdout) == (0, "result 42\n"), done.stderr


def test_app_run_in_a_repl_runs_an_imported_app(database: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    done = run_program(database, "-c", "from shop import app, job" + RUN, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "result 42\n"), done.stderr


def test_app_run_refuses_an_app_that_workers_cannot_import(database: str) -> None:
    done = run_program(database, "-c", "from underway import Underway\ndef main(): Underway().run()\nmain()")
    assert "it is not a global of any module: assign it in a module" in done.stderr
    done = run_program(database, "-c", "from underway import Underway; app = Underway(); app.run()")
    assert "code from a REPL, a notebook or python -c cannot be imported" in done.stderr


def test_app_run_raises_if_the_supervisor_does_not_start(database: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    program = "import shop, sys\nopen('shop.py', 'a').write('raise RuntimeError(\"no such setting\")')\n"
    program += "try:\n    shop.app.run(until_idle=True)\n"
    program += "except __import__('underway').SupervisorFailed as error:\n    print(error.exit_code, error)"
    done = run_program(database, "-c", program, cwd=tmp_path)
    assert done.stdout.startswith(
        "3 the supervisor of shop:app ended with exit code 3, app-does-not-boot: the app could"
    )
    assert "no such setting" in done.stderr


def test_app_run_raises_if_the_supervisor_is_killed(database: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(APP + "if __name__ == '__main__':\n    app.run()\n")
    process = subprocess.Popen(
        [sys.executable, str(program)],
        env={"PATH": "/usr/bin:/bin", "UNDERWAY_DATABASE_URL": database},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "serving" in line:
            break
    (supervisor,) = psutil.Process(process.pid).children()
    supervisor.kill()
    output = process.stderr.read()
    assert process.wait(20) == 1
    process.stderr.close()
    assert f"SupervisorFailed: the supervisor of {program}:app was killed by signal 9" in output


def test_a_program_that_enqueued_exits_without_a_close(database: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.partition("if __name__")[0] + "job.enqueue(1)\nprint('enqueued')\n")
    environment = {"PATH": "/usr/bin:/bin", "UNDERWAY_DATABASE_URL": database}
    done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "enqueued\n", "")


def test_a_forked_child_has_its_own_connections(app: Underway, connection: Connection) -> None:
    clients.orders.enqueue(Order(1))
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            signal.alarm(20)
            clients.orders.enqueue(Order(2))
            app.close()
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    clients.orders.enqueue(Order(3))
    assert states(connection) == {"pending": 3}
