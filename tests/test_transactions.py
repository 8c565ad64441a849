"""`cx.tx`: what a step writes through it takes effect with its hand-over, once, or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from apps import transactions
from apps.transactions import Order
from harness import Supervisor, eventually

from underway import Status, Underway
from underway.client import Run

Start = Callable[..., Supervisor]


@pytest.fixture
def effects(connection: psycopg.Connection[Any], bind: Callable[[Underway], Underway]) -> Callable[[], Any]:
    """What has taken effect: a list of (run, step, attempt)."""
    bind(transactions.app)
    connection.execute(transactions.TABLES)

    def look() -> list[tuple[UUID, str, int]]:
        return connection.execute("select run, step, attempt from effect order by run, step").fetchall()

    return look


def serve(start: Start, *options: str) -> Supervisor:
    return start("transactions", *options)


def here(folder: Path) -> int:
    """Wait for the step to come; the pid of its worker."""

    def look() -> int:
        file = folder / "here"
        return int(file.read_text() or 0) if file.exists() else 0

    return eventually(look)


def ended(run: Run[Any]) -> list[tuple[str, int, str]]:
    return [(attempt.step, attempt.number, attempt.outcome) for attempt in run.attempts()]


def test_writes_take_effect_with_the_hand_over_and_failures_leave_nothing(
    effects: Callable[[], Any], connection: psycopg.Connection[Any], start_supervisor: Start
) -> None:
    good = [
        transactions.once.enqueue(Order(name, 1)) for name in ("write_one", "enqueue", "recover", "keep_connection")
    ]
    pair = transactions.pairs.enqueue(Order("nothing", 2))
    bad = {name: transactions.once.enqueue(Order(name, 3)) for name in transactions.failures}
    assert serve(start_supervisor, "--until-idle", "--procs", "1").wait(60) == 0
    assert [run.result() for run in good] == [1, 1, 1, 1]
    assert ended(pair) == [("first", 1, "succeeded"), ("last", 1, "succeeded")]
    assert sorted(effects()) == sorted(
        [(run.id, "do", 1) for run in good] + [(pair.id, "first", 1), (pair.id, "last", 1)]
    )
    wrong = []
    for name, run in bad.items():
        (attempt,) = run.attempts()
        if (run.status(), attempt.outcome) != (Status.FAILED, "failed") or transactions.failures[name] not in (
            attempt.error or ""
        ):
            wrong.append((name, run.status(), attempt))
    assert wrong == []
    # Of the runs that were enqueued in a step, only those of the step that succeeded exist.
    inputs = connection.execute("select result from underway.finished_run where job = 'children' order by 1").fetchall()
    assert inputs == [(1,), (2,), (3,), (4,)]
    assert connection.execute("select sum(value) from counter where id not in (4, 5)").fetchone() == (0,)
    assert good[0].attempts()[0].cpu_seconds is not None
