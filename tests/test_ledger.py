"""Writes of steps through `cx.tx` take effect exactly once per step, whoever is killed and whatever is cut off."""

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psutil
import psycopg
import pytest
from apps import ledger
from harness import Supervisor, outcomes, states

from underway import Underway

SEED = int(os.environ.get("CHAOS_SEED", "1848"))
SECONDS = float(os.environ.get("CHAOS_SECONDS", "90"))

Connection = psycopg.Connection[Any]
Start = Callable[..., Supervisor]
Bind = Callable[[Underway], Underway]


def test_money_moves_once(bind: Bind, connection: Connection, start_supervisor: Start) -> None:
    disturb(bind, connection, start_supervisor, runs=60, seconds=2.0)


@pytest.mark.chaos
@pytest.mark.timeout(SECONDS + 300)
def test_money_moves_once_for_long(bind: Bind, connection: Connection, start_supervisor: Start) -> None:
    disturb(bind, connection, start_supervisor, runs=int(SECONDS * 20), seconds=SECONDS)


def disturb(bind: Bind, connection: Connection, start: Start, *, runs: int, seconds: float) -> None:
    bind(ledger.app)
    connection.execute(ledger.TABLES)
    rng = random.Random(SEED)
    moved: Counter[int] = Counter()
    transfers = []
    for number in range(runs):
        debtor, creditor = rng.sample(range(ledger.ACCOUNTS), 2)
        transfers.append(ledger.Transfer(number, rng.randint(1, 100), debtor, creditor))
        moved[debtor] -= transfers[-1].amount
        moved[creditor] += transfers[-1].amount
    ledger.transfers.enqueue_many(transfers)

    serving = [start("ledger") for _ in range(2)]
    for supervisor in serving:
        supervisor.until("serving")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(rng.uniform(0.05, 0.25))
        (deed,) = rng.choices([kill_a_worker, cut_a_step, cut_a_supervisor, kill_a_supervisor], [8, 8, 3, 1])
        deed(rng, connection, serving, start)
    for supervisor in serving:
        supervisor.send(signal.SIGTERM)
    for supervisor in serving:
        supervisor.wait()
    while connection.execute("select from underway.run limit 1").fetchall():  # until idle is not until none is delayed
        assert start("ledger", "--until-idle").wait(120) == 0

    audit(connection, moved, runs)


def kill_a_worker(rng: random.Random, _connection: Connection, serving: list[Supervisor], _start: Start) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        if workers := rng.choice(serving).workers():
            rng.choice(workers).kill()


def cut_a_step(_rng: random.Random, connection: Connection, _serving: list[Supervisor], _start: Start) -> None:
    """One whose transaction is open, at whatever it is."""
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


def audit(connection: Connection, moved: Counter[int], runs: int) -> None:
    assert states(connection) == {"succeeded": runs + runs * 2 * 2}, "two receipts for each of two steps"
    succeeded = connection.execute(
        "select run_id, step, number from underway.attempt where outcome = 'succeeded' and step <> 'receipt'"
    ).fetchall()
    entries = connection.execute("select run, step, attempt from entry").fetchall()
    assert len(entries) == runs * 2
    assert sorted(entries) == sorted(succeeded), outcomes(connection)
    balances = dict(connection.execute("select id, balance from account").fetchall())
    assert balances == {account: moved[account] for account in range(ledger.ACCOUNTS + 1)}
