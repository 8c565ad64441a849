"""Steps with writes of their own. The table `effect` says what has taken effect: one row for each."""

import os
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg

from underway import Context, Done, Fail, Retry, RetryPolicy, To, Underway

app = Underway()

Deed = Any
deeds: dict[str, Deed] = {}


def deed(function: Deed) -> Deed:
    deeds[function.__name__] = function
    return function


@dataclass
class Order:
    """`how` names a deed, done at the first attempt only if `once`."""

    how: str = "write"
    number: int = 0
    once: bool = False


def write_effect(cx: Context, number: int) -> None:
    cx.tx.execute("insert into effect (run, step, number) values (%s, %s, %s)", [cx.run_id, cx.step, number])


def do(cx: Context, order: Order) -> Done[Any]:
    if order.once and cx.attempt > 1:
        write_effect(cx, order.number)
        return To.done(order.number)
    return To.done(deeds[order.how](cx, order))


def begin(cx: Context, order: Order) -> To[Order]:
    write_effect(cx, order.number)
    return To.next(order)


def end(cx: Context, order: Order) -> Done[int]:
    write_effect(cx, order.number)
    return To.done(order.number)


@deed
def write(cx: Context, order: Order) -> int:
    write_effect(cx, order.number)
    return order.number


@deed
def nothing(cx: Context, order: Order) -> int:
    return os.getpid()


quick = RetryPolicy(max_attempts=2, initial_interval=timedelta(milliseconds=20))
orders = app.job("orders").step(do, retry=quick)
pairs = app.job("pairs").step(begin, retry=quick).step(end, retry=quick)
