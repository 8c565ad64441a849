"""Mistakes that mypy and pyright must both refuse, each on the line marked `# error`. Never run."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Never

from underway import Context, Done, Job, RetryPolicy, Run, To, Underway, aio


@dataclass
class Order:
    number: int


@dataclass
class Receipt:
    key: str


def price(cx: Context, order: Order) -> To[Receipt]:
    return To.next(Receipt(key=str(order.number)))


def price_or_stop(cx: Context, order: Order) -> To[Receipt, str]:
    return To.done("")


def send(cx: Context, receipt: Receipt) -> Done:
    return To.done()


def sweep(cx: Context) -> Done[int]:
    return To.done(3)


def no_hand_over(cx: Context, order: Order) -> Receipt:
    return Receipt(key="")


def two_inputs(cx: Context, order: Order, receipt: Receipt) -> Done:
    return To.done()


def wrong_context(cx: str, order: Order) -> Done:
    return To.done()


def no_context() -> Done:
    return To.done()


# What a step returns
def hands_over_something_else(cx: Context, order: Order) -> To[Receipt]:
    return To.next(order)  # error


def ends_instead(cx: Context, order: Order) -> To[Receipt]:
    return To.done("early")  # error


def goes_on_after_the_end(cx: Context, order: Order) -> Done:
    return To.next(Receipt(key=""))  # error


def another_result(cx: Context, order: Order) -> Done[str]:
    return To.done(3)  # error


def forgets(cx: Context, order: Order) -> Done:
    return None  # error


def wrong_delay(cx: Context, order: Order) -> To[Receipt]:
    return To.next(Receipt(key=""), delay=5)  # error


app = Underway()

# Steps that do not fit
app.job("a").step(price).step(price)  # error
app.job("b").step(price).step(sweep)  # error
app.job("c").step(price).step(send).step(send).step(send)  # error
app.job("c").step(price).step(send).step(send).enqueue(Order(1))  # error
app.job("d").step(no_hand_over)  # error
app.job("e").step(two_inputs)  # error
app.job("f").step(wrong_context)  # error
app.job("g").step(no_context)  # error
app.job("h").step("price")  # error

# Options
app.job("i").step(price, tries=3)  # error
app.job("j").step(price, timeout=300)  # error
app.job("k").step(price, retry=3)  # error
app.job("l").step(price, memory_limit=1.5)  # error
app.job("m").step(price, priority="high")  # error
app.job("n").step(price, formerly=["charge"])  # error
app.job("o").step(price, keep="14 days")  # error
app.job("p").step(price, lease=60)  # error
app.job("q").step(price, max_crashes="3")  # error
app.job("r").step(price, queue=None)  # error
app.job("s").step(price, delay=0.5)  # error
app.job("t").step(price, name=1)  # error
app.job("u").step(price).step(send, timout=timedelta(seconds=1))  # error
RetryPolicy(max_attempts="3")  # error
RetryPolicy(initial_interval=1)  # error

# Enqueueing
endless = app.job("v").step(price)
whole = app.job("w").step(price_or_stop).step(send)
swept = app.job("x").step(sweep)
endless.enqueue(Order(1))  # error
endless.enqueue_many([Order(1)])  # error
whole.enqueue(Receipt(key=""))  # error
whole.enqueue()  # error
whole.enqueue(1)  # error
whole.enqueue_many([Receipt(key="")])  # error
whole.enqueue_many(Order(1))  # error
whole.enqueue(Order(1), conn="postgresql://")  # error
whole.enqueue(Order(1), priority="high")  # error
whole.enqueue(Order(1), unique_key=7)  # error
whole.enqueue(Order(1), queue="other")  # error
whole.enqueue_many([Order(1)], delay=5)  # error
swept.enqueue(Order(1))  # error
app.job("y").enqueue(Order(1))  # error

# Schedules
endless.schedule("@daily", Order(1))  # error
whole.schedule("@daily")  # error
whole.schedule("@daily", Receipt(key=""))  # error
whole.schedule("@daily", Order(1), catch_up="some")  # error
whole.schedule("@daily", Order(1), conn="postgresql://")  # error

# Results
number: int = whole.enqueue(Order(1)).result()  # error
run: Run[int] = whole.enqueue(Order(1))  # error
job: Job[Receipt, Receipt, str] = whole  # error


def spawning(cx: Context, order: Order) -> Done:
    cx.enqueue(endless, order)  # error
    cx.enqueue(whole, Receipt(key=""))  # error
    cx.enqueue(whole)  # error
    cx.progress("half")  # error
    return To.done()


# Async steps


async def price_async(cx: Context, order: Order) -> To[Receipt]:
    return To.next(order)  # error


async def no_hand_over_async(cx: Context, order: Order) -> Receipt:
    return Receipt(key="")


app.job("z").step(price_async).step(price_async)  # error
app.job("aa").step(no_hand_over_async)  # error
app.job("ab").step(price_async).enqueue(Order(1))  # error


# State


class Model:
    pass


async def connect() -> Model:
    return Model()


def needs_argument(path: str) -> Model:
    return Model()


def judge(cx: Context[Model], order: Order) -> Done[str]:
    return To.done(cx.state.unknown)  # error


def judge_number(cx: Context[int], order: Order) -> Done:
    return To.done(cx.state + 1)  # error


def says_nothing(cx: Context, order: Order) -> Done[str]:
    return To.done(cx.state.name)  # error


app.job("ac").step(judge)  # error
app.job("ad", state=Model).step(judge_number)  # error
app.job("ae", state=connect).step(judge_number)  # error
app.job("af", state=needs_argument)  # error
app.job("ag", state=3)  # error
stateful: Job[Order, Never, str, int] = app.job("ah", state=Model).step(judge)  # error


# The async client


async def service() -> None:
    await aio.enqueue(endless, Order(1))  # error
    await aio.enqueue(whole, Receipt(key=""))  # error
    await aio.enqueue(whole)  # error
    await aio.enqueue_many(whole, [Receipt(key="")])  # error
    await aio.enqueue(whole, Order(1), conn="postgresql://")  # error
    await (await aio.enqueue(whole, Order(1))).result(timeout="1 s")  # error
    run: aio.AsyncRun[int] = await aio.enqueue(whole, Order(1))  # error
    await run.status()
