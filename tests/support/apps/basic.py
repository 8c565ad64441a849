"""Small well-behaved jobs."""

from dataclasses import dataclass
from datetime import timedelta

from underway import Context, Done, RetryPolicy, To, Underway

app = Underway()


@dataclass
class Order:
    number: int


@dataclass
class Receipt:
    text: str


def price(cx: Context, order: Order) -> To[Receipt]:
    return To.next(Receipt(text=f"order {order.number}"))


def send(cx: Context, receipt: Receipt) -> Done[str]:
    return To.done(f"sent {receipt.text}")


def number(cx: Context, value: int) -> Done[int]:
    return To.done(value)


orders = app.job("orders").step(price).step(send)
numbers = app.job("numbers").step(
    number, retry=RetryPolicy(max_attempts=3, initial_interval=timedelta(milliseconds=50))
)
