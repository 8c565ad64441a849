"""Chains that fit, with the types that mypy and pyright must infer. Checked by test_typing.py, never run."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Never, TypedDict, assert_type

from underway import Context, Done, Job, RetryPolicy, Run, Schedule, Status, To, Underway

if TYPE_CHECKING:
    import psycopg


@dataclass
class Order:
    number: int


@dataclass
class Receipt:
    key: str


class Page(TypedDict):
    url: str


def price(cx: Context, order: Order) -> To[Receipt]:
    return To.next(Receipt(key=str(order.number)))


def price_or_stop(cx: Context, order: Order) -> To[Receipt, str]:
    if order.number == 0:
        return To.done("nothing to do")
    return To.next(Receipt(key="1"), delay=timedelta(seconds=1))


def send(cx: Context, receipt: Receipt) -> Done:
    return To.done()


def send_and_tell(cx: Context, receipt: Receipt) -> Done[str]:
    return To.done(receipt.key)


def count(cx: Context, receipt: Receipt) -> Done[int]:
    return To.done(1)


def sweep(cx: Context) -> Done[int]:
    return To.done(3)


def begin(cx: Context) -> To[None]:
    return To.next(None)


def pages(cx: Context, urls: list[str]) -> To[Page]:
    return To.next({"url": urls[0]})


def visit(cx: Context, page: Page) -> Done[dict[str, int]]:
    return To.done({page["url"]: 1})


def stops_or_sends(cx: Context, order: Order) -> To[Receipt, None] | Done[str]:
    return To.done("") if order.number else To.next(Receipt(key=""))


class Mailer:
    def deliver(self, cx: Context, receipt: Receipt) -> Done[bool]:
        return To.done(True)

    def __call__(self, cx: Context, receipt: Receipt) -> Done[bytes]:
        return To.done(b"")


app = Underway()

assert_type(To.next(1), To[int, Never])
assert_type(To.done("x"), To[Never, str])
assert_type(To.done(), To[Never, None])

# One step, several steps
assert_type(app.job("a").step(price), Job[Order, Receipt, None])
plain = app.job("b").step(price).step(send)
assert_type(plain, Job[Order, Never, None])
assert_type(plain.enqueue(Order(1)), Run[None])
assert_type(plain.enqueue(Order(1)).result(), None)
assert_type(plain.enqueue(Order(1)).wait(timeout=1), Status)

# A step that ends the run early gives a result of its own
telling = app.job("c").step(price_or_stop).step(send)
assert_type(telling, Job[Order, Never, str | None])
assert_type(telling.enqueue(Order(1)), Run[str | None])
assert_type(telling.enqueue(Order(1)).result(timeout=timedelta(seconds=1)), str | None)
assert_type(telling.enqueue_many([Order(1)]), list[Run[str | None]])
assert_type(telling.enqueue(Order(1), priority=5, unique_key="{id}", keep=timedelta(days=1)).created, bool)
assert_type(telling.enqueue_many([Order(1)], delay=timedelta(1), concurrency_key="a"), list[Run[str | None]])
assert_type(app.job("d").step(price).step(send_and_tell).enqueue(Order(1)), Run[str | None])
assert_type(app.job("e").step(price_or_stop).step(send_and_tell).enqueue(Order(1)), Run[str])
assert_type(app.job("f").step(price_or_stop).step(count).enqueue(Order(1)), Run[str | int])
assert_type(app.job("g").step(stops_or_sends).step(count).enqueue(Order(1)).result(), str | int | None)

# Steps without an input
swept = app.job("h").step(sweep)
assert_type(swept, Job[None, Never, int])
assert_type(swept.enqueue(), Run[int])
assert_type(swept.enqueue(None), Run[int])
assert_type(app.job("i").step(begin).step(sweep), Job[None, Never, int | None])

# Plain JSON types and TypedDicts
visited = app.job("j").step(pages).step(visit)
assert_type(visited.enqueue(["https://example.org"]).result(), dict[str, int] | None)

# Methods and callable objects
assert_type(app.job("k").step(Mailer().deliver).enqueue(Receipt("")), Run[bool])
assert_type(app.job("l").step(Mailer()).enqueue(Receipt("")), Run[bytes])

# Every option
optioned = app.job("m").step(
    sweep,
    name="sweep",
    formerly=("clean", "tidy"),
    retry=RetryPolicy(max_attempts=3, initial_interval=timedelta(seconds=1)),
    timeout=timedelta(minutes=5),
    memory_limit="1 GiB",
    lease=timedelta(seconds=30),
    max_crashes=1,
    queue="slow",
    priority=-1,
    delay=timedelta(hours=1),
    keep=timedelta(days=1),
)
assert_type(optioned, Job[None, Never, int])


# Schedules
assert_type(telling.schedule("@daily[Asia/Tokyo]", Order(1), name="nightly", catch_up="all"), Schedule)
assert_type(swept.schedule("*/5 * * * *", overlap=False), Schedule)
assert_type(swept.schedule("@hourly", None).next_slots(2), list[datetime])
assert_type(swept.unschedule(), bool)
assert_type(app.schedules(), list[Schedule])


def values() -> Iterator[Order]:
    yield Order(1)


def in_a_transaction(conn: "psycopg.Connection[dict[str, Any]]") -> None:
    assert_type(telling.enqueue(Order(1), conn=conn), Run[str | None])
    assert_type(telling.enqueue_many(values(), conn=conn), list[Run[str | None]])
    assert_type(swept.enqueue(conn=conn), Run[int])
    assert_type(swept.schedule("@daily", conn=conn), Schedule)


def spawning(cx: Context, order: Order) -> Done:
    assert_type(cx.enqueue(telling, order), Run[str | None])
    assert_type(cx.enqueue(swept, None), Run[int])
    assert_type(cx.scheduled_for, datetime | None)
    return To.done()
