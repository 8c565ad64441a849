"""The main path: enqueue, supervise, result."""

from collections.abc import Callable
from typing import Any

import psycopg
from apps import basic
from harness import Supervisor, outcomes, states

from underway import Underway


def test_runs_flow_through_typed_steps(
    bind: Callable[[Underway], Underway],
    connection: psycopg.Connection[Any],
    start_supervisor: Callable[..., Supervisor],
) -> None:
    bind(basic.app)
    runs = basic.orders.enqueue_many([basic.Order(number) for number in range(50)])
    assert start_supervisor("basic", "--until-idle").wait() == 0
    assert [run.result() for run in runs] == [f"sent order {number}" for number in range(50)]
    assert states(connection) == {"succeeded": 50}
    assert outcomes(connection) == {"succeeded": 100}
    steps = [(attempt.step, attempt.number, attempt.outcome) for attempt in runs[0].attempts()]
    assert steps == [("price", 1, "succeeded"), ("send", 1, "succeeded")]
