"""Jobs that show what a client can ask for and see."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from underway import Context, Done, Fail, InsideStep, Retry, RetryPolicy, To, Underway

app = Underway()

STRANGE = "a\tb\nc\\d\"e'f\r\\N \\. ü🦆 %s {x}"
QUICK = RetryPolicy(max_attempts=3, initial_interval=timedelta(milliseconds=20), max_interval=timedelta(seconds=1))


@dataclass
class Order:
    number: int
    note: str = ""


def echo(cx: Context, value: Any) -> Done[Any]:
    return To.done(value)


def keep_order(cx: Context, order: Order) -> Done[Order]:
    return To.done(order)


def always_fails(cx: Context, value: str) -> Done:
    raise ValueError(f"cannot do {value}")


def gives_up(cx: Context, value: str) -> Done:
    raise Fail(f"never {value}")


def retries_later(cx: Context, seconds: float) -> Done[int]:
    if cx.attempt == 1:
        raise Retry("not yet", after=timedelta(seconds=seconds))
    return To.done(cx.attempt)


def retries_by_policy(cx: Context, successes_at: int) -> Done[int]:
    if cx.attempt < successes_at:
        raise Retry("again")
    return To.done(cx.attempt)


def leaves(cx: Context, how: str) -> Done:
    raise SystemExit(how) if how == "SystemExit" else KeyboardInterrupt


def spawns(cx: Context, fail_until: int) -> Done[list[str]]:
    children = [cx.enqueue(echoes, f"attempt {cx.attempt}"), cx.enqueue(later, Order(1))]
    if cx.attempt < fail_until:
        raise ValueError("the children must not exist")
    return To.done([str(child.id) for child in children])


def first(cx: Context, value: int) -> To[str]:
    return To.next(f"from {value}", delay=timedelta(seconds=0.5))


def second(cx: Context, value: str) -> Done[str]:
    return To.done(value)


def tries_what_is_refused(cx: Context, run_id: str) -> Done[list[str]]:
    """The errors of calls that are not allowed in a step."""
    calls: list[Callable[[], Any]] = [
        lambda: echoes.enqueue(1),
        lambda: echoes.enqueue_many([1]),
        lambda: app.get_run(run_id).wait(),
        lambda: app.get_run(run_id).result(),
        lambda: app.run(),
    ]
    said = []
    for call in calls:
        try:
            call()
        except InsideStep as error:
            said.append(str(error))
    return To.done(said)


def looks_around(cx: Context) -> Done[dict[str, Any]]:
    left = (cx.deadline - datetime.now(UTC)).total_seconds()
    return To.done({"run": str(cx.run_id), "job": cx.job, "step": cx.step, "attempt": cx.attempt, "left": left})


def sleeps(cx: Context, seconds: float) -> Done:
    time.sleep(seconds)
    return To.done()


def dies(cx: Context) -> Done:
    os._exit(1)


def wrong_result(cx: Context) -> Done[int]:
    return To.done("three")  # type: ignore[arg-type]


echoes = app.job("echoes").step(echo)
orders = app.job("orders").step(keep_order)
strange = app.job(STRANGE).step(echo, name=STRANGE, queue=STRANGE)
placed = app.job("placed").step(
    echo, queue="slow", priority=-7, delay=timedelta(hours=2), keep=timedelta(days=3, seconds=1.5)
)
failing = app.job("failing").step(always_fails, retry=QUICK)
hopeless = app.job("hopeless").step(gives_up, retry=QUICK)
retrying = app.job("retrying").step(retries_later, retry=RetryPolicy(initial_interval=timedelta(seconds=60)))
patient = app.job("patient").step(retries_by_policy, retry=QUICK)
leaving = app.job("leaving").step(leaves, retry=RetryPolicy(max_attempts=1))
later = app.job("later").step(keep_order, delay=timedelta(days=1), queue="tomorrow", priority=3)
spawning = app.job("spawning").step(spawns, retry=QUICK)
handing = app.job("handing").step(first).step(second)
refused = app.job("refused").step(tries_what_is_refused)
looking = app.job("looking").step(looks_around, timeout=timedelta(seconds=100))
sleeping = app.job("sleeping").step(sleeps)
dying = app.job("dying").step(dies, max_crashes=1)
wrong = app.job("wrong").step(wrong_result, retry=RetryPolicy(max_attempts=1))
renamed = app.job("renamed").step(first, name="begin", formerly=("start", "first")).step(second, formerly="last")
