"""Valid chains, with the types that mypy and pyright must infer. Checked by test_typing.py, never run."""

from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Never, TypedDict, assert_type

from underway import (
    Context,
    DeadLetter,
    Done,
    Job,
    Quarantined,
    RetryPolicy,
    Run,
    Schedule,
    Status,
    To,
    Underway,
    aio,
)

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
    assert_type(cx.scheduled_at, datetime | None)
    return To.done()


# Async steps: the hand-over is what is awaited


async def price_async(cx: Context, order: Order) -> To[Receipt, str]:
    return To.next(Receipt(key=""))


async def send_async(cx: Context, receipt: Receipt) -> Done[int]:
    return To.done(1)


async def sweep_async(cx: Context) -> Done[bytes]:
    return To.done(b"")


def passes_on(cx: Context, receipt: Receipt) -> Awaitable[Done[int]]:
    return send_async(cx, receipt)


asynchronous = app.job("n").step(price_async).step(send_async)
assert_type(asynchronous, Job[Order, Never, str | int])
assert_type(asynchronous.enqueue(Order(1)), Run[str | int])
assert_type(app.job("o").step(price).step(send_async), Job[Order, Never, int | None])
assert_type(app.job("p").step(price_async).step(send_and_tell).enqueue(Order(1)), Run[str])
assert_type(app.job("q").step(sweep_async).enqueue(), Run[bytes])
assert_type(app.job("r").step(price_async).step(passes_on), Job[Order, Never, str | int])


# State


class Model:
    def predict(self, order: Order) -> str:
        return ""


def load_model() -> Model:
    return Model()


async def connect() -> Model:
    return Model()


def judge(cx: Context[Model], order: Order) -> To[Receipt]:
    assert_type(cx.state, Model)
    return To.next(Receipt(key=cx.state.predict(order)))


async def judge_async(cx: Context[Model]) -> Done[str]:
    return To.done(cx.state.predict(Order(1)))


def always_tell(cx: Context[object], receipt: Receipt) -> Done[str]:
    return To.done("")


def judge_or_stop(cx: Context[Model], order: Order) -> To[Receipt, str]:
    return To.next(Receipt(key=""))


def stateless(cx: Context, receipt: Receipt) -> Done:
    assert_type(cx.state, object)
    return To.done()


judged = app.job("s", state=load_model).step(judge).step(stateless)
assert_type(judged, Job[Order, Never, None, Model])
assert_type(judged.enqueue(Order(1)), Run[None])
assert_type(judged.enqueue_many([Order(1)]), list[Run[None]])
assert_type(app.job("t", state=Model).step(judge), Job[Order, Receipt, None, Model])
assert_type(app.job("u", state=connect).step(judge).step(send_async), Job[Order, Never, int | None, Model])
assert_type(app.job("v", state=connect).step(judge_async).enqueue(), Run[str])
assert_type(app.job("w", state=load_model).step(price).step(send), Job[Order, Never, None, Model])


def anything_to_enqueue(job: Job[Order, Never, str]) -> Run[str]:
    return job.enqueue(Order(1))


# A job with a state is accepted where only its input and result matter.
anything_to_enqueue(app.job("x", state=load_model).step(judge_or_stop).step(always_tell))


def follow(run: Run[object]) -> Status:
    return run.wait()


# A run is read-only, so one with a narrower result type is accepted.
follow(telling.enqueue(Order(1)))


# Failed runs
assert_type(app.dead_letters("label"), list[DeadLetter])
assert_type(app.dead_letters("label")[0].run, Run[Any])
assert_type(app.quarantined("a")[0].run, Run[Any])
assert_type(app.redrive(app.dead_letters("label")[0].run, input=Order(1)), int)
assert_type(app.release_quarantined(limit=3), int)


# The async client


async def service(conn: "psycopg.AsyncConnection[dict[str, Any]]") -> None:
    run = await aio.enqueue(telling, Order(1), conn=conn)
    assert_type(run, aio.AsyncRun[str | None])
    assert_type(await run.result(timeout=5), str | None)
    assert_type(await run.wait(), Status)
    assert_type(await aio.enqueue(swept), aio.AsyncRun[int])
    assert_type(await aio.enqueue(judged, Order(1)), aio.AsyncRun[None])
    assert_type(await aio.enqueue_many(telling, values(), conn=conn), list[aio.AsyncRun[str | None]])
    assert_type(await aio.get_run(app, run.id), aio.AsyncRun[Any])
    assert_type(await run.cancel(conn=conn), bool)
    assert_type(await aio.cancel_run(app, run.id), bool)
    assert_type(await aio.dead_letters(app, "label"), list[DeadLetter[aio.AsyncRun[Any]]])
    assert_type(await aio.quarantined(app), list[Quarantined[aio.AsyncRun[Any]]])
    assert_type(await aio.redrive(app, run, input=Order(1), conn=conn), int)
    assert_type(await aio.pause(app, "default", conn=conn), bool)
    assert_type(await aio.sync(app), list[str])
