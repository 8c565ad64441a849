"""Promise 4 under kills and cut connections: writes through `cx.tx` take effect exactly once per step."""

import contextlib
import random
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil
import psycopg
import pytest
from chaos_report import Count
from chaos_settings import SEED, stretched
from harness import Supervisor
from ledger_audit import open_books

SECONDS = stretched(40)

Connection = psycopg.Connection[Any]
Start = Callable[..., Supervisor]


def test_money_moves_once(database: str, connection: Connection, start_supervisor: Start, count: Count) -> None:
    disturb(database, connection, start_supervisor, count, runs=60, seconds=2.0)


@pytest.mark.chaos
@pytest.mark.timeout(SECONDS + 300)
def test_money_moves_once_for_long(
    database: str, connection: Connection, start_supervisor: Start, count: Count
) -> None:
    disturb(database, connection, start_supervisor, count, runs=int(SECONDS * 20), seconds=SECONDS)


def disturb(database: str, connection: Connection, start: Start, count: Count, *, runs: int, seconds: float) -> None:
    rng = random.Random(SEED)
    with open_books(database, rng) as books:
        books.enqueue(runs)
        serving = [start("ledger") for _ in range(2)]
        for supervisor in serving:
            supervisor.until("serving")
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(rng.uniform(0.05, 0.25))
            (fault,) = rng.choices([kill_a_worker, cut_a_step, cut_a_supervisor, kill_a_supervisor], [8, 8, 3, 1])
            fault(rng, connection, serving, start)
            count(**{fault.__name__: 1}, peak_mib=max(supervisor.peak_mib for supervisor in serving))
        for supervisor in serving:
            supervisor.send(signal.SIGTERM)
        for supervisor in serving:
            supervisor.wait()
        # --until-idle does not wait for delayed runs
        while connection.execute("select from underway.run limit 1").fetchall():
            assert start("ledger", "--until-idle").wait(120) == 0
        books.audit(count)


def kill_a_worker(rng: random.Random, _connection: Connection, serving: list[Supervisor], _start: Start) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        if workers := rng.choice(serving).workers():
            rng.choice(workers).kill()


def cut_a_step(_rng: random.Random, connection: Connection, _serving: list[Supervisor], _start: Start) -> None:
    """Cut one whose transaction is open, at any point."""
    connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and application_name like 'underway %' order by random() limit 1"
    )


def cut_a_supervisor(_rng: random.Random, connection: Connection, _serving: list[Supervisor], _start: Start) -> None:
    connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and application_name = 'underway' order by random() limit 1"
    )


def kill_a_supervisor(rng: random.Random, _connection: Connection, serving: list[Supervisor], start: Start) -> None:
    killed = serving.pop(rng.randrange(len(serving)))
    killed.send(signal.SIGKILL)
    serving.append(start("ledger"))
    serving[-1].until("serving")
