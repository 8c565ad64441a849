"""With real supervisors: what must not go on, not stop, not grow and not spin."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
from apps import conforming
from db import Connection, value
from harness import Supervisor, eventually, outcomes, states
from psycopg import sql

from underway import RunFailed, Status, Underway

OURS = "select pid from pg_stat_activity where datname = current_database() and application_name = 'underway'"


@pytest.fixture
def start(
    bind: Callable[[Underway], Underway], start_supervisor: Callable[..., Supervisor], stage: Path
) -> Callable[..., Supervisor]:
    """Start a supervisor of apps/conforming.py."""
    bind(conforming.app)
    return lambda *options: start_supervisor("conforming", *options, env={"FOLDER": str(stage)})


def test_nothing_is_renewed_when_a_step_has_ended(
    connection: Connection, start: Callable[..., Supervisor], stage: Path
) -> None:
    run = conforming.lasting.enqueue("end")
    start("--procs", "1")
    eventually((stage / "end began").exists)
    lease = "select lease_expires_at from underway.run"
    first = value(connection, lease)
    eventually(lambda: value(connection, lease) > first, what="the lease is renewed")
    # No transaction is open as long as the step runs.
    open_ones = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in%'"
    assert value(connection, open_ones) == 0
    (stage / "end").touch()
    eventually(lambda: run.status() is Status.WAITING)
    # Two periods later the row is the very same, down to the transaction that wrote it.
    row = "select xmin::text, to_jsonb(r) from underway.run r"
    before = connection.execute(row).fetchall()
    assert before[0][1]["lease_expires_at"] is None
    time.sleep(0.6)
    assert connection.execute(row).fetchall() == before


def test_commits_that_have_to_wait_hold_up_no_renewal(
    database: str, connection: Connection, start: Callable[..., Supervisor], stage: Path
) -> None:
    run = conforming.two.enqueue("late")
    supervisor = start("--procs", "2")
    eventually((stage / "late began").exists)
    with psycopg.connect(database) as stranger:
        stranger.execute("lock table underway.finished_run in access exclusive mode")
        ended = conforming.numbers.enqueue(1)
        waiting = "select count(*) from pg_locks where not granted and relation = 'underway.finished_run'::regclass"
        eventually(lambda: value(connection, waiting), what="a commit waits")
        end = time.monotonic() + 1.5  # leases long
        while time.monotonic() < end:
            query = "select lease_expires_at > clock_timestamp() from underway.run where id = %s"
            assert value(connection, query, [run.id])
            time.sleep(0.05)
    (stage / "late").touch()
    assert (run.result(20), ended.result(20)) == (["late"], 1)
    assert outcomes(connection) == {"succeeded": 3}
    assert "lease" not in supervisor.log


def test_an_input_that_does_not_fit_is_a_failed_attempt(
    connection: Connection, start: Callable[..., Supervisor]
) -> None:
    conforming.app.sync()
    run = conforming.app.get_run(value(connection, "select underway.enqueue('numbers', '\"seven\"')"))
    start("--procs", "1")
    with pytest.raises(RunFailed, match="int"):
        run.result(10)
    assert [attempt.outcome for attempt in run.attempts()] == ["failed", "failed"]
    assert conforming.numbers.enqueue(7).result(10) == 7


def test_a_flood_of_strange_notifications_leaves_nothing_behind(
    connection: Connection, start: Callable[..., Supervisor]
) -> None:
    supervisor = start("--procs", "1")
    assert conforming.numbers.enqueue(1).result(20) == 1
    process = psutil.Process(supervisor.pid)
    flood = "select pg_notify('underway', %s || n) from generate_series(1, 2000) n"

    def after_a_flood() -> tuple[int, int]:
        for strange in ("{", "", "x" * 500, '{"queue": 1}', "cancel\N{PILE OF POO}"):
            connection.execute(flood, [strange])
        assert conforming.numbers.enqueue(2).result(20) == 2
        return process.memory_info().rss, process.num_fds()

    before = after_a_flood()
    after = [after_a_flood() for _ in range(2)][-1]
    assert after[0] - before[0] < 3 * 2**20
    assert after[1] == before[1]
    assert "Traceback" not in supervisor.log


def test_connections_do_not_grow_with_the_workers(
    connection: Connection, start: Callable[..., Supervisor], stage: Path
) -> None:
    start("--procs", "8")
    runs = conforming.two.enqueue_many([f"{number}" for number in range(8)])
    eventually(lambda: all((stage / f"{number} began").exists() for number in range(8)))
    conforming.app.close()  # what this test itself has open
    eventually(lambda: len(connection.execute(OURS).fetchall()) == 2)
    for number in range(8):
        (stage / f"{number}").touch()
    assert {run.wait(20) for run in runs} == {Status.SUCCEEDED}


def test_each_start_has_an_identity_of_its_own(connection: Connection, start: Callable[..., Supervisor]) -> None:
    """One that begins again with a known name takes over what its predecessor still runs, or is taken for it."""
    found = set()
    for number in (1, 2):
        supervisor = start("--procs", "1")
        query = "select id from underway.supervisor where pid = %s"
        found |= set(eventually(lambda: connection.execute(query, [supervisor.pid]).fetchall()))  # noqa: B023
        supervisor.process.kill()
        supervisor.process.wait()
        assert len(found) == number


@contextmanager
def _table_away(server: str, database: str, connection: Connection) -> Iterator[None]:
    connection.execute("alter table underway.run rename to run_away")
    yield
    connection.execute("alter table underway.run_away rename to run")


@contextmanager
def _connections_forbidden(server: str, database: str, connection: Connection) -> Iterator[None]:
    name = sql.Identifier(connection.info.dbname)
    with psycopg.connect(server, autocommit=True) as other:
        other.execute(sql.SQL("alter database {} allow_connections false").format(name))
        _cut(connection)
        yield
        other.execute(sql.SQL("alter database {} allow_connections true").format(name))


def _cut(connection: Connection) -> None:
    """End the connections of all supervisors."""
    connection.execute("select pg_terminate_backend(pid, 5000) from (" + OURS + ") ours")


@pytest.mark.parametrize("away", [_table_away, _connections_forbidden], ids=["no table", "no connections"])
def test_whatever_fails_at_once_makes_no_busy_loop(
    away: Callable[..., object], server: str, database: str, connection: Connection, start: Callable[..., Supervisor]
) -> None:
    supervisor = start("--procs", "1")
    assert conforming.numbers.enqueue(1).result(20) == 1
    conforming.app.close()
    process = psutil.Process(supervisor.pid)
    with away(server, database, connection):  # type: ignore[attr-defined]
        lines, cpu = supervisor.log.count("\n"), sum(process.cpu_times()[:2])
        time.sleep(1.5)
        lines, cpu = supervisor.log.count("\n") - lines, sum(process.cpu_times()[:2]) - cpu
    assert cpu < 0.75
    assert 0 < lines < 200
    assert supervisor.process.poll() is None
    assert conforming.numbers.enqueue(2).result(20) == 2


def test_schedules_outlive_the_database_and_end_with_a_stop(
    connection: Connection, start: Callable[..., Supervisor]
) -> None:
    schedule = "update underway.schedule set next_at = now() + interval '300 ms'"
    supervisor = start("--procs", "1")
    supervisor.until("serving")
    conforming.numbers.schedule("0 0 1 1 *", 1)
    _cut(connection)
    connection.execute(schedule)
    eventually(lambda: states(connection) == {"succeeded": 1})
    supervisor.process.terminate()
    assert supervisor.wait() == 0
    connection.execute(schedule)
    time.sleep(0.5)
    assert states(connection) == {"succeeded": 1}
