"""A job for each state that a run can be in. STATES_FOLDER is a folder."""

import os
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from underway import Context, Done, Fail, RetryPolicy, To, Underway

app = Underway()


@dataclass
class Order:
    number: int
    customer: str = "Ada"


class PrinterOnFire(Exception):
    """An exception of a step."""


def price(cx: Context, order: Order) -> To[Order]:
    return To.next(order)


def send(cx: Context, order: Order) -> Done[str]:
    return To.done(f"sent order {order.number}")


def break_down(cx: Context, order: Order) -> Done:
    raise PrinterOnFire(f"order {order.number} does not print")


def refuse(cx: Context, order: Order) -> Done:
    """Fail until the input is changed."""
    if order.number < 0:
        raise Fail("a negative number")
    return To.done()


def abort(cx: Context, order: Order) -> Done:
    os.abort()


def last(cx: Context, order: Order) -> Done:
    """Run until its file exists."""
    cx.progress(1, 3, "pages")
    while not Path(os.environ["STATES_FOLDER"], str(order.number)).exists():
        time.sleep(0.01)
    return To.done()


orders = app.job("orders").step(price).step(send)
failing = (
    app.job("failing")
    .step(price)
    .step(break_down, retry=RetryPolicy(max_attempts=2, initial_interval=timedelta(milliseconds=10)))
)
refusing = app.job("refusing").step(refuse, queue="pdf")
aborting = app.job("aborting").step(abort, max_crashes=1)
lasting = app.job("lasting").step(last, queue="slow")
later = app.job("later").step(send, delay=timedelta(days=2))
