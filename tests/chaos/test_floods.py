"""Workers that print, send and hand over too much: leases are renewed in time, and memory stays bounded.

CHAOS_SEED determines what the workers of the long tests print.
"""

import contextlib
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import psycopg
import pytest
from apps import floods
from harness import Supervisor, eventually, outcomes, states
from psycopg import sql

from underway import Status, Underway
from underway.client.run import Run
from underway.payload.codec import MAX_PAYLOAD

SEED = int(os.environ.get("CHAOS_SEED", "1848"))
MIB = 2**20
LEASE = floods.LEASE.total_seconds()

Bind = Callable[[Underway], Underway]
Connection = psycopg.Connection[Any]
Start = Callable[..., Supervisor]


class Observation(NamedTuple):
    """Over all runs in progress at any time: the shortest remaining lease in seconds, and the number of runs."""

    least_left: float
    most_running: int


def watch(connection: Connection, *, within: float) -> Observation:
    """Observe the leases until all runs have ended."""
    least_left, most_running = LEASE, 0

    def all_ended() -> bool:
        nonlocal least_left, most_running
        row = connection.execute(
            """select count(*), count(*) filter (where state = 'in_progress'),
                extract(epoch from min(lease_expires_at - clock_timestamp())
                    filter (where state = 'in_progress'))::float8
            from underway.run where job <> 'leaves'"""
        ).fetchone()
        assert row is not None
        live, running, left = row
        most_running = max(most_running, running)
        least_left = min(least_left, left if running else LEASE)
        return bool(live == 0)

    eventually(all_ended, within=within, what="all runs have ended")
    return Observation(least_left, most_running)


def peak_rss(process: int) -> int:
    """The peak memory in bytes, as counted by the kernel."""
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def test_no_lease_expires_and_memory_is_bounded_while_all_workers_flood(
    bind: Bind, connection: Connection, start_supervisor: Start
) -> None:
    bind(floods.app)
    hows = [*floods.HOWS, "everything"] * 2
    runs = floods.floods.enqueue_many([*hows, "everything"])
    results = floods.results.enqueue_many(range(40))
    supervisor = start_supervisor("floods", "--procs", "12", env={"FLOOD_SECONDS": "2.5"})
    seen = watch(connection, within=60)
    assert seen.most_running >= len(runs)
    assert peak_rss(supervisor.pid) < 200 * MIB
    assert outcomes(connection) == {"succeeded": len(runs) + len(results)}
    assert not re.search(r"\bleases?\b", supervisor.log)


@pytest.mark.chaos
@pytest.mark.timeout(400)
def test_64_workers_flood_for_a_while(
    bind: Bind, connection: Connection, start_supervisor: Start, say: Callable[[str], None]
) -> None:
    bind(floods.app)
    runs = floods.floods.enqueue_many([f"{SEED} {number}" for number in range(56)])
    results = floods.results.enqueue_many(range(2000))
    supervisor = start_supervisor("floods", "--procs", "64", env={"FLOOD_SECONDS": "20"})
    seen = watch(connection, within=300)
    peak = peak_rss(supervisor.pid)
    say(f"\n64 workers flood, CHAOS_SEED={SEED}: {seen}, {peak / MIB:.0f} MiB")
    assert seen.most_running >= 56
    assert seen.least_left > LEASE / 2
    assert peak < 500 * MIB
    assert outcomes(connection) == {"succeeded": len(runs) + len(results)}
    assert not re.search(r"\bleases?\b", supervisor.log)


def test_payloads_at_the_limit_pass_and_a_larger_one_fails_only_its_run(
    bind: Bind, connection: Connection, start_supervisor: Start
) -> None:
    bind(floods.app)
    returned = floods.returning.enqueue_many([0] * 2)
    chained = floods.chained.enqueue_many([0] * 2)
    given = floods.measuring.enqueue_many([floods.text_of(MAX_PAYLOAD)] * 2)
    too_much: list[Run[Any]] = [floods.returning.enqueue(1), floods.chained.enqueue(1)]
    supervisor = start_supervisor("floods", "--procs", "4")
    measured: list[Run[Any]] = [*chained, *given]
    for run in measured:
        assert run.result(60) == MAX_PAYLOAD - 2
    for back in returned:
        assert back.wait(60) is Status.SUCCEEDED
    assert len(returned[0].result() or "") == MAX_PAYLOAD - 2
    for failed in too_much:
        assert failed.wait(60) is Status.FAILED
        (attempt,) = failed.attempts()
        assert f"a payload of {MAX_PAYLOAD + 1:,} bytes, and max_payload is {MAX_PAYLOAD:,}" in (attempt.error or "")
    assert outcomes(connection) == {"succeeded": 2 + 2 * 2 + 2, "failed": 2}
    assert peak_rss(supervisor.pid) < 500 * MIB


@pytest.mark.chaos
def test_results_that_cannot_be_committed_stop_the_workers(
    bind: Bind, connection: Connection, start_supervisor: Start
) -> None:
    bind(floods.app)
    runs = floods.returning.enqueue_many([0] * 45)  # megabytes each
    supervisor = start_supervisor("floods", "--procs", "4")
    eventually(lambda: states(connection).get("succeeded", 0) > 3)
    with shut(connection):
        eventually(lambda: all("idle" in " ".join(worker.cmdline()) for worker in supervisor.workers()), within=20)
        assert states(connection)["in_progress"] > 5
    eventually(lambda: outcomes(connection) == {"succeeded": len(runs)}, within=120)

    assert peak_rss(supervisor.pid) < 300 * MIB


@contextlib.contextmanager
def shut(connection: Connection) -> Iterator[None]:
    """Only the given connection to this database stays open, and new ones are refused."""
    info = connection.info
    database = sql.Identifier(info.dbname)
    with psycopg.connect(info.dsn, dbname="postgres", password=info.password, autocommit=True) as elsewhere:
        elsewhere.execute(sql.SQL("alter database {} allow_connections false").format(database))
        try:
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )
            yield
        finally:
            elsewhere.execute(sql.SQL("alter database {} allow_connections true").format(database))


def test_texts_that_are_too_long_are_shortened_at_their_source(
    bind: Bind, connection: Connection, start_supervisor: Start
) -> None:
    bind(floods.app)
    runs = dict(zip(floods.DEEDS, floods.exaggerating.enqueue_many(floods.DEEDS), strict=True))
    supervisor = start_supervisor("floods", "--procs", "2", "--log-format", "json")
    seen = watch(connection, within=60)
    assert seen.least_left > LEASE / 2
    assert peak_rss(supervisor.pid) < 120 * MIB
    for how in ("long_error", "many_lines"):
        (attempt,) = runs.pop(how).attempts()
        assert attempt.outcome == "failed"
        error = attempt.error or ""
        assert error.startswith("Traceback")
        assert re.search(r"\n\.\.\. [\d,]+ characters left out \.\.\.\n", error)
        assert error.rstrip().endswith("end")
        assert len(error) < 50_000
    for run in runs.values():
        assert run.status() is Status.SUCCEEDED
    (record,) = [line for line in supervisor.log.splitlines() if "beginning rrr" in line]
    assert "characters left out" in record
    assert "rrr end" in record
    assert len(record) < 50_000


def test_many_children_are_enqueued_and_too_many_fail_only_their_attempt(
    bind: Bind, connection: Connection, start_supervisor: Start
) -> None:
    bind(floods.app)
    many = floods.parents.enqueue_many(["10000 x 10"] * 2)
    # More than a frame can carry; more rows than a statement can write before its timeout.
    too_many = floods.parents.enqueue_many([f"40 x {MAX_PAYLOAD}", "1000000 x 10"])
    others = floods.shorts.enqueue_many([""] * 20)
    supervisor = start_supervisor("floods", "--procs", "4")
    seen = watch(connection, within=60)
    assert seen.least_left > LEASE / 2
    for run in many:
        assert run.result() == 10_000
    for run in others:
        assert run.result() == 1
    for run in too_many:
        assert run.status() is Status.FAILED
        (attempt,) = run.attempts()
        assert attempt.outcome == "failed"
        assert "conn=cx.tx" in (attempt.error or "")
    assert connection.execute("select count(*) from underway.run").fetchone() == (20_000,)
    assert peak_rss(supervisor.pid) < 250 * MIB


def test_tasks_of_a_worker_that_does_not_read_go_to_others(
    bind: Bind, connection: Connection, start_supervisor: Start
) -> None:
    bind(floods.app)
    # Short ones, so that many are pipelined; together more than a socket holds.
    text = "t" * 4000
    before = floods.shorts.enqueue_many([text] * 800)
    stopped = floods.shorts.enqueue("stop")
    behind = floods.shorts.enqueue_many([text] * 800)
    supervisor = start_supervisor("floods", "--procs", "2")
    eventually(lambda: states(connection) == {"succeeded": len(before) + len(behind), "in_progress": 1}, within=15)
    assert stopped.status() is Status.IN_PROGRESS
    for worker in supervisor.workers():
        if worker.status() == psutil.STATUS_STOPPED:
            worker.send_signal(signal.SIGCONT)
    assert stopped.result(10) == 1
    assert outcomes(connection) == {"succeeded": len(before) + 1 + len(behind)}


@pytest.mark.chaos
def test_workers_that_stop_reading_are_killed_at_their_timeout(
    bind: Bind, connection: Connection, start_supervisor: Start
) -> None:
    bind(floods.app)
    supervisor = start_supervisor("floods", "--procs", "6", "--verbose")
    eventually(lambda: supervisor.log.count("worker booted") == 7)
    text = "t" * 4000
    stopped = floods.timed.enqueue_many(["stop"] * 4)
    eventually(lambda: states(connection) == {"in_progress": 4})
    for _ in range(20):
        others = floods.shorts.enqueue_many([text] * 200)
        eventually(lambda: all(run.status() is Status.SUCCEEDED for run in others), within=10)  # noqa: B023
        if stopped[0].status() is not Status.IN_PROGRESS:
            break
    for run in stopped:
        assert run.wait(20) is Status.FAILED
        (attempt,) = run.attempts()
        assert attempt.outcome == "timed_out"
        assert (attempt.error or "").startswith("the worker was killed: timeout")
        assert attempt.started_at is not None
        assert 6.9 < (attempt.finished_at - attempt.started_at).total_seconds() < 12
    assert supervisor.process.poll() is None
