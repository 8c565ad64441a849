"""How a supervisor stops, and how it survives an outage of the database."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from apps import basic, doomed
from harness import Supervisor, eventually, outcomes, states
from places import APPS
from psycopg.conninfo import make_conninfo

from underway import Status, Underway
from underway.client.run import Run
from underway.postgres import migrate
from underway.postgres.embedded import Cluster
from underway.testing.servers import temporary_cluster

# As a module, since it imports another of the apps.
DOOMED = "apps.doomed:app"


@pytest.fixture
def start(start_supervisor: Callable[..., Supervisor], stage: Path) -> Callable[..., Supervisor]:
    """Start a supervisor for apps/doomed.py."""

    def start_doomed(*options: str, env: dict[str, str] | None = None) -> Supervisor:
        return start_supervisor(
            DOOMED, *options, env={"PYTHONPATH": str(APPS.parent), "HOSTILE_FOLDER": str(stage), **(env or {})}
        )

    return start_doomed


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A separate server with the schema, to be stopped and started."""
    with temporary_cluster() as cluster:
        with psycopg.connect(cluster.url("postgres")) as connection:
            migrate.migrate(connection)
        yield cluster


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains(
    number: signal.Signals,
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start: Callable[..., Supervisor],
    stage: Path,
) -> None:
    bind(doomed.app)
    running = doomed.told.enqueue("curtain")
    supervisor = start("--procs", "1")
    eventually(lambda: running.status() is Status.IN_PROGRESS)
    # Only one of them can run; the others may or may not have been claimed.
    waiting = doomed.told.enqueue_many(["curtain"] * 5)
    supervisor.send(number)
    supervisor.until(f"{number.name}: finishing what runs")
    eventually(lambda: states(connection) == {"in_progress": 1, "pending": 5}, what="what waits is given back")
    assert supervisor.process.poll() is None
    (stage / "curtain").touch()
    assert supervisor.wait() == 0
    assert "stopped, exit code 0" in supervisor.log.splitlines()[-1]
    assert running.status() is Status.SUCCEEDED
    assert states(connection) == {"succeeded": 1, "pending": 5}
    for run in waiting:
        assert run.attempts() == []
        assert _counters(connection, run)[:2] == (0, 0)
    assert _supervisors(connection) == 0


@pytest.mark.parametrize(
    "numbers", [(signal.SIGQUIT,), (signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT)], ids=str
)
def test_quit_or_a_second_signal_stops_now(
    numbers: tuple[signal.Signals, ...],
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start: Callable[..., Supervisor],
) -> None:
    bind(doomed.app)
    runs: list[Run[Any]] = [doomed.c_code.enqueue(60), doomed.told.enqueue("never")]
    supervisor = start("--procs", "2", "--grace", "600")
    eventually(lambda: states(connection) == {"in_progress": 2})
    # Started, not only claimed.
    time.sleep(0.3)
    for number in numbers:
        supervisor.send(number)
        time.sleep(0.2)
    assert supervisor.wait() == 1
    assert "interrupted: the supervisor stops" not in supervisor.log, "killed at once"
    assert states(connection) == {"pending": 2}
    for run in runs:
        assert [(attempt.number, attempt.outcome) for attempt in run.attempts()] == [(1, "released")]
        assert _counters(connection, run) == (0, 0, 1)
    assert _supervisors(connection) == 0


def test_after_the_grace_period_steps_are_interrupted_then_killed(
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start: Callable[..., Supervisor],
    stage: Path,
) -> None:
    bind(doomed.app)
    runs = [doomed.tidying.enqueue("tidied"), doomed.c_code.enqueue(60)]
    supervisor = start("--procs", "2", "--grace", "0.5")
    eventually(lambda: states(connection) == {"in_progress": 2})
    time.sleep(0.3)
    supervisor.send(signal.SIGTERM)
    assert supervisor.wait() == 1
    assert "stopped, exit code 1" in supervisor.log.splitlines()[-1]
    assert (stage / "tidied").read_text() == "shutdown"
    assert states(connection) == {"pending": 2}
    for run in runs:
        assert [(attempt.number, attempt.outcome) for attempt in run.attempts()] == [(1, "released")]
        assert _counters(connection, run) == (0, 0, 1)
    # The next supervisor runs them, and their attempt numbers continue.
    (stage / "tidied").unlink()
    start("--procs", "2")
    eventually(lambda: states(connection) == {"in_progress": 2})
    assert connection.execute("select array_agg(distinct attempt_number::int) from underway.run").fetchone() == ([1],)


def test_term_while_booting(start_supervisor: Callable[..., Supervisor]) -> None:
    supervisor = start_supervisor("slow_boot", "--procs", "2")
    eventually(lambda: len(supervisor.workers()) == 3)
    supervisor.send(signal.SIGTERM)
    assert supervisor.wait() == 0


@pytest.mark.chaos
def test_term_while_the_database_is_down(
    cluster: Cluster, start: Callable[..., Supervisor], bind: Callable[[Underway], Underway]
) -> None:
    bind(doomed.app).database.named = cluster.url("postgres")
    run = doomed.shorts.enqueue(1)
    busy = doomed.c_code.enqueue(3)
    supervisor = start("--database", cluster.url("postgres"))
    assert run.wait(30) is Status.SUCCEEDED
    eventually(lambda: busy.status() is Status.IN_PROGRESS)
    doomed.app.close()
    cluster.stop("immediate")
    supervisor.until("cannot connect to the database, trying again")
    supervisor.send(signal.SIGTERM)
    # The running step takes 3 s, and the last attempt to write takes 10.
    assert supervisor.wait(25) == 1
    assert "cannot reach the database; what is not recorded is taken back" in supervisor.log


def test_work_continues_after_a_restart_of_the_database(
    cluster: Cluster, start: Callable[..., Supervisor], bind: Callable[[Underway], Underway]
) -> None:
    bind(doomed.app).database.named = cluster.url("postgres")
    doomed.shorts.enqueue_many(range(2000))
    supervisor = start("--procs", "2", "--database", cluster.url("postgres"))
    for finished in (300, 900):
        with psycopg.connect(cluster.url("postgres"), autocommit=True) as connection:
            eventually(lambda more=finished: states(connection).get("succeeded", 0) > more)  # type: ignore[misc]
        doomed.app.close()
        cluster.stop("immediate")
        time.sleep(0.5)
        cluster.start()
    with psycopg.connect(cluster.url("postgres"), autocommit=True) as connection:
        eventually(lambda: states(connection) == {"succeeded": 2000}, within=60)
        ended = outcomes(connection)
        assert ended.pop("succeeded") == 2000
        # Runs of a claim whose answer was lost are released or reaped; nothing else happened.
        assert ended.keys() <= {"lost", "released"}
        # A finished run is in one table only, so it cannot run again.
        assert connection.execute("select count(*) from underway.run").fetchone() == (0,)
        assert supervisor.process.poll() is None
        supervisor.send(signal.SIGTERM)
        assert supervisor.wait() == 0


def test_killed_connections_lose_nothing(
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start: Callable[..., Supervisor],
) -> None:
    bind(doomed.app)
    doomed.shorts.enqueue_many(range(1500))
    supervisor = start("--procs", "2", "--until-idle")
    eventually(lambda: states(connection).get("succeeded", 0) > 50)
    while supervisor.process.poll() is None:
        connection.execute(
            """select pg_terminate_backend(pid) from pg_stat_activity
            where application_name = 'underway' and datname = current_database() and pid <> pg_backend_pid()"""
        )
        time.sleep(random.uniform(0.1, 0.4))
    assert supervisor.wait() == 0
    assert states(connection) == {"succeeded": 1500}
    # No step succeeded twice, and no run was charged.
    assert outcomes(connection).pop("succeeded") == 1500
    row = connection.execute("select sum(attempts)::int, sum(crashes)::int from underway.runs").fetchone()
    assert row == (0, 0)


def test_exit_codes(start_supervisor: Callable[..., Supervisor], empty_database: str) -> None:
    """The exit codes that all commands have in common are in test_cli."""

    def ended(*options: str) -> tuple[int, str]:
        supervisor = start_supervisor("basic", "--procs", "1", *options)
        return supervisor.wait(), supervisor.log

    secret = "s3cr3t"
    code, log = ended("--database", f"postgresql://user:{secret}@host:port:5432/what is this")
    assert code == 2
    assert secret not in log
    # A server that refuses the connection.
    code, log = ended("--database", make_conninfo(empty_database, dbname="nowhere", password=secret))
    assert code == 5
    assert '"nowhere" does not exist' in log
    assert secret not in log


def test_the_log_never_contains_the_password(
    database: str, bind: Callable[[Underway], Underway], start_supervisor: Callable[..., Supervisor]
) -> None:
    bind(basic.app)
    run = basic.numbers.enqueue(1)
    secret = make_conninfo(database, password="s3cr3t")
    supervisor = start_supervisor("basic", "--procs", "1", "--verbose", "--database", secret)
    assert run.result(30) == 1
    os.kill(supervisor.pid, signal.SIGTERM)
    assert supervisor.wait() == 0
    assert "s3cr3t" not in supervisor.log


def _counters(connection: psycopg.Connection[Any], run: Run[Any]) -> tuple[int, int, int]:
    """Attempts, crashes, releases."""
    row = connection.execute(
        "select attempts, crashes, releases from underway.runs where id = %s", (run.id,)
    ).fetchone()
    assert row is not None
    return row[0], row[1], row[2]


def _supervisors(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("select count(*) from underway.supervisor").fetchone()
    assert row is not None
    return int(row[0])


def test_a_signal_after_the_last_log_line_does_not_change_the_exit_code(
    start_supervisor: Callable[..., Supervisor],
) -> None:
    supervisor = start_supervisor("basic", "--procs", "1")
    supervisor.until("serving")
    supervisor.send(signal.SIGTERM)
    supervisor.until("stopped, exit code 0")
    while supervisor.process.poll() is None:
        supervisor.send(signal.SIGTERM)
        time.sleep(0.001)
    assert supervisor.wait() == 0
