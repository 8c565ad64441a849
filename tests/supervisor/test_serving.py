"""A supervisor that serves for a long time: renewals, connections, memory, outages; no busy loops."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
from apps import blocking
from db import Connection, value
from harness import Supervisor, eventually, outcomes, states
from psycopg import sql

from underway import RunFailed, Status, Underway

OURS = "select pid from pg_stat_activity where datname = current_database() and application_name = 'underway'"


@pytest.fixture
def start(
    bind: Callable[[Underway], Underway], start_supervisor: Callable[..., Supervisor], stage: Path
) -> Callable[..., Supervisor]:
    """Start a supervisor for apps/blocking.py."""
    bind(blocking.app)
    return lambda *options: start_supervisor("blocking", *options, env={"FOLDER": str(stage)})


def test_a_lease_is_not_renewed_after_its_step_has_ended(
    connection: Connection, start: Callable[..., Supervisor], stage: Path
) -> None:
    run = blocking.lasting.enqueue("end")
    start("--procs", "1")
    eventually((stage / "end began").exists)
    lease = "select lease_expires_at from underway.run"
    first = value(connection, lease)
    eventually(lambda: value(connection, lease) > first, what="the lease is renewed")
    # No transaction is open while the step runs.
    open_ones = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in%'"
    assert value(connection, open_ones) == 0
    (stage / "end").touch()
    eventually(lambda: run.status() is Status.WAITING)
    # Two renewal periods later the row is unchanged, and was not written again.
    row = "select xmin::text, to_jsonb(r) from underway.run r"
    before = connection.execute(row).fetchall()
    assert before[0][1]["lease_expires_at"] is None
    time.sleep(0.6)
    assert connection.execute(row).fetchall() == before


def test_a_commit_that_waits_does_not_delay_renewals(
    database: str, connection: Connection, start: Callable[..., Supervisor], stage: Path
) -> None:
    run = blocking.two.enqueue("late")
    supervisor = start("--procs", "2")
    eventually((stage / "late began").exists)
    with psycopg.connect(database) as other:
        other.execute("lock table underway.finished_run in access exclusive mode")
        ended = blocking.numbers.enqueue(1)
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


def test_an_input_of_the_wrong_type_is_a_failed_attempt(
    connection: Connection, start: Callable[..., Supervisor]
) -> None:
    blocking.app.sync()
    run = blocking.app.get_run(value(connection, "select underway.enqueue('numbers', '\"seven\"')"))
    start("--procs", "1")
    with pytest.raises(RunFailed, match="int"):
        run.result(10)
    assert [attempt.outcome for attempt in run.attempts()] == ["failed", "failed"]
    assert blocking.numbers.enqueue(7).result(10) == 7


def test_a_flood_of_unknown_notifications_does_not_leak(
    connection: Connection, start: Callable[..., Supervisor]
) -> None:
    supervisor = start("--procs", "1")
    assert blocking.numbers.enqueue(1).result(20) == 1
    process = psutil.Process(supervisor.pid)
    flood = "select pg_notify('underway', %s || n) from generate_series(1, 2000) n"

    def after_a_flood() -> tuple[int, int]:
        for unknown in ("{", "", "x" * 500, '{"queue": 1}', "cancel\N{PILE OF POO}"):
            connection.execute(flood, [unknown])
        assert blocking.numbers.enqueue(2).result(20) == 2
        return process.memory_info().rss, process.num_fds()

    before = after_a_flood()
    after = [after_a_flood() for _ in range(2)][-1]
    assert after[0] - before[0] < 3 * 2**20
    assert after[1] == before[1]
    assert "Traceback" not in supervisor.log


def test_the_number_of_connections_does_not_depend_on_the_number_of_workers(
    connection: Connection, start: Callable[..., Supervisor], stage: Path
) -> None:
    start("--procs", "8")
    runs = blocking.two.enqueue_many([f"{number}" for number in range(8)])
    eventually(lambda: all((stage / f"{number} began").exists() for number in range(8)))
    blocking.app.close()  # the connections of this test
    eventually(lambda: len(connection.execute(OURS).fetchall()) == 2)
    for number in range(8):
        (stage / f"{number}").touch()
    assert {run.wait(20) for run in runs} == {Status.SUCCEEDED}


def test_each_start_has_a_new_supervisor_id(connection: Connection, start: Callable[..., Supervisor]) -> None:
    """With a reused ID, a supervisor would own the runs of its predecessor, whose workers may still be alive."""
    found = set()
    for number in (1, 2):
        supervisor = start("--procs", "1")
        query = "select id from underway.supervisor where pid = %s"
        found |= set(eventually(lambda: connection.execute(query, [supervisor.pid]).fetchall()))  # noqa: B023
        supervisor.process.kill()
        supervisor.process.wait()
        assert len(found) == number


@contextmanager
def _table_renamed(server: str, database: str, connection: Connection) -> Iterator[None]:
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
    """Terminate the connections of all supervisors."""
    connection.execute("select pg_terminate_backend(pid, 5000) from (" + OURS + ") ours")


@pytest.mark.parametrize("outage", [_table_renamed, _connections_forbidden], ids=["no table", "no connections"])
def test_statements_that_fail_at_once_cause_no_busy_loop(
    outage: Callable[..., object], server: str, database: str, connection: Connection, start: Callable[..., Supervisor]
) -> None:
    supervisor = start("--procs", "1")
    assert blocking.numbers.enqueue(1).result(20) == 1
    blocking.app.close()
    process = psutil.Process(supervisor.pid)
    with outage(server, database, connection):  # type: ignore[attr-defined]
        lines, cpu = supervisor.log.count("\n"), sum(process.cpu_times()[:2])
        time.sleep(1.5)
        lines, cpu = supervisor.log.count("\n") - lines, sum(process.cpu_times()[:2]) - cpu
    assert cpu < 0.75
    assert 0 < lines < 200
    assert supervisor.process.poll() is None
    assert blocking.numbers.enqueue(2).result(20) == 2


def test_schedules_fire_after_an_outage_but_not_after_a_stop(
    connection: Connection, start: Callable[..., Supervisor]
) -> None:
    schedule = "update underway.schedule set next_at = now() + interval '300 ms'"
    supervisor = start("--procs", "1")
    supervisor.until("serving")
    blocking.numbers.schedule("0 0 1 1 *", 1)
    _cut(connection)
    connection.execute(schedule)
    eventually(lambda: states(connection) == {"succeeded": 1})
    supervisor.process.terminate()
    assert supervisor.wait() == 0
    connection.execute(schedule)
    time.sleep(0.5)
    assert states(connection) == {"succeeded": 1}
