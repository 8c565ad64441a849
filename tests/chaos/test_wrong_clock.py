"""Promise 8: nothing depends on the host's clock, which may be an hour off or be set at any time."""

import ast
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from apps import skewed
from db import value
from firing import Connection
from harness import Supervisor, eventually, outcomes, states
from wrong_clock import WrongClock

import underway
from underway import Status, Underway
from underway.postgres import embedded
from underway.testing.database import using_database
from underway.testing.servers import temporary_cluster

HOUR = 3600
CLOCKS = {
    *(f"time.{name}" for name in ("time", "time_ns", "localtime", "gmtime", "ctime")),
    *(
        f"{module}{name}"
        for module in ("datetime.", "datetime.datetime.", "date.")
        for name in ("now", "utcnow", "today")
    ),
}
# The uses of the host's clock: the leading bits of an ID, the deadline that a step can read, and the
# time of a log line.
ASKS = {"ids.py", "worker/executor.py", "supervisor/logs/format.py"}


def test_no_decision_uses_the_hosts_clock() -> None:
    package = Path(underway.__file__).parent
    asks = set()
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in CLOCKS:
                asks.add(str(file.relative_to(package)))
    assert asks == ASKS


@pytest.mark.chaos
def test_leases_delays_and_schedules_use_the_databases_clock(
    bind: Callable[[Underway], Underway],
    connection: Connection,
    start_supervisor: Callable[..., Supervisor],
    tmp_path: Path,
) -> None:
    bind(skewed.app)
    clock = WrongClock(tmp_path)
    supervisors = []
    for ahead in (HOUR, -HOUR):
        clock.be_ahead(ahead)
        supervisors.append(start_supervisor("skewed", "--procs", "4", env=clock.environment))
        supervisors[-1].until("serving")
        told = skewed.clocks.enqueue().result(20) - time.time()
        assert abs(told - ahead) < 30, "otherwise this test shows nothing"
        long = skewed.long.enqueue()
        later = skewed.clocks.enqueue(delay=timedelta(seconds=2))
        again = skewed.again.enqueue()
        skewed.hourly.schedule("0 * * * *")
        connection.execute("update underway.schedule set next_at = now() + interval '1 s'")
        eventually(lambda: long.status() is Status.IN_PROGRESS)  # noqa: B023
        clock.be_ahead(-ahead)  # while all of that is in progress
        assert long.result(20) == 1, "its lease was renewed"
        assert later.wait(20) is Status.SUCCEEDED
        late = "select extract(epoch from min(a.started_at) - r.created_at)::float8 - %s from underway.attempt a"
        late += " join underway.finished_run r on r.id = a.run_id where r.id = %s group by r.created_at"
        assert 0 <= value(connection, late, [2, later.id]) < 10
        assert again.wait(20) is Status.SUCCEEDED
        first, second = again.attempts()
        assert second.started_at is not None
        assert 1 <= (second.started_at - first.finished_at).total_seconds() < 10
        slots = "select count(*) from underway.finished_run where job = 'hourly'"
        eventually(lambda: value(connection, slots) == len(supervisors))  # noqa: B023
    assert outcomes(connection) == {"succeeded": 10, "failed": 2}
    for supervisor in supervisors:
        supervisor.process.terminate()
        assert supervisor.wait() == 0


@pytest.mark.chaos
def test_setting_the_databases_clock_charges_no_run(
    monkeypatch: pytest.MonkeyPatch, start_supervisor: Callable[..., Supervisor]
) -> None:
    """Set forward, it makes all leases expire at once."""
    with tempfile.TemporaryDirectory() as folder:  # not pytest's folder, which the server's user cannot read
        clock = WrongClock(Path(folder))
        for file in (Path(folder), *Path(folder).iterdir()):
            file.chmod(0o755)
        for name, setting in clock.environment.items():
            monkeypatch.setitem(embedded.ENVIRONMENT, name, setting)
        with temporary_cluster() as cluster:
            cluster.create_database("skewed")
            url = cluster.url("skewed")
            with using_database(skewed.app, url), psycopg.connect(url, autocommit=True) as connection:
                skewed.app.migrate()
                crew = [start_supervisor("skewed", "--procs", "4", "--database", url) for _ in range(2)]
                for supervisor in crew:
                    supervisor.until("serving")
                for ahead in (HOUR, 3 * HOUR):
                    runs = [skewed.long.enqueue() for _ in range(8)]
                    eventually(lambda: states(connection).get("in_progress") == 8)
                    clock.be_ahead(ahead)
                    assert [run.result(20) for run in runs] == [1] * 8
                assert value(connection, "select extract(epoch from now())::float8") - time.time() > HOUR
                assert set(outcomes(connection)) == {"succeeded"}
                assert all("clock was set forward" in supervisor.log for supervisor in crew)
