"""A supervisor whose network is too slow to transfer a full claim or commit before its deadline."""

from collections.abc import Callable
from typing import Any

import pytest
from apps import loads
from harness import Supervisor
from proxy import SlowLine

from underway import Underway
from underway.client.run import Run

BYTES_PER_SECOND = 350_000
LARGE = 400_000
LARGEST = 8 * 1024 * 1024 - 100
WITHIN = 300.0

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(WITHIN + 60)]


def large_inputs_behind_small_ones() -> list[Run[Any]]:
    return [*loads.measured.enqueue_many(["x"] * 3000), *loads.measured.enqueue_many(["x" * LARGE] * 25)]


def large_results() -> list[Run[Any]]:
    return loads.repeated.enqueue_many([LARGE] * 25)


def an_input_that_takes_longer_than_any_statement() -> list[Run[Any]]:
    return loads.measured.enqueue_many(["x" * LARGEST, "x"])


def a_result_that_takes_longer_than_any_statement() -> list[Run[Any]]:
    return loads.repeated.enqueue_many([LARGEST, 1])


@pytest.mark.parametrize(
    "enqueue",
    [
        large_inputs_behind_small_ones,
        large_results,
        an_input_that_takes_longer_than_any_statement,
        a_result_that_takes_longer_than_any_statement,
    ],
    ids=lambda enqueue: enqueue.__name__,
)
def test_all_runs_finish_on_a_slow_network(
    bind: Callable[[Underway], Underway],
    database: str,
    start_supervisor: Callable[..., Supervisor],
    enqueue: Callable[[], list[Run[Any]]],
) -> None:
    bind(loads.app)
    runs = enqueue()
    with SlowLine(database, BYTES_PER_SECOND) as line:
        supervisor = start_supervisor("loads", "--procs", "2", "--database", line.url)
        for run in runs:
            run.result(WITHIN)
        attempts = {attempt.outcome for run in runs[-30:] for attempt in run.attempts()}
        assert attempts == {"succeeded"}, supervisor.log
        supervisor.end()
