"""Steps for `underway replay`."""

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from underway import Context, Done, Fail, To, Underway

app = Underway()


@dataclass
class Order:
    number: int
    how: str = "goes on"


def book(cx: Context, order: Order) -> To[str]:
    print(f"booking order {order.number}, attempt {cx.attempt}")
    cx.tx.execute("create table if not exists booked (number int unique deferrable initially deferred)")
    cx.tx.execute("insert into booked values (%s)", [order.number])
    match order.how:
        case "fails":
            broken = f"order {order.number} cannot be booked"
            raise Fail(broken)
        case "twice":
            cx.tx.execute("insert into booked values (%s)", [order.number])
        case "kills":
            ctypes.string_at(0)
        case "waits" if "REPLAY_FOLDER" in os.environ:
            Path(os.environ["REPLAY_FOLDER"], str(os.getpid())).touch()
            cx.tx.execute("select pg_sleep(60)")
    cx.enqueue(greetings, f"customer of {order.number}")
    return To.next(f"order {order.number}")


def confirm(cx: Context, text: str) -> Done[str]:
    return To.done(f"{text} is booked")


def greet(cx: Context, name: str) -> Done:
    return To.done()


bookings = app.job("bookings").step(book, max_crashes=1).step(confirm)
greetings = app.job("greetings").step(greet)
