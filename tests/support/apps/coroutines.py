"""Async steps and states. They write files to FOLDER."""

import asyncio
import contextlib
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, Never

from underway import Context, Done, InsideStep, Interrupt, RetryPolicy, To, Underway, aio

app = Underway()

once = RetryPolicy(max_attempts=1)
short = timedelta(seconds=0.4)
loops: set[int] = set()
overlapping = 0


async def first(cx: Context, value: int) -> To[int, Never]:
    global overlapping
    overlapping += 1
    await asyncio.sleep(0.01)
    assert overlapping == 1, "two steps at a time"
    overlapping -= 1
    loops.add(id(asyncio.get_running_loop()))
    return To.next(value + 1)


def between(cx: Context, value: int) -> To[int, Never]:
    """A sync step among async ones, with a loop of its own."""
    return To.next(asyncio.run(_plus_one(value)))


async def _plus_one(value: int) -> int:
    await asyncio.sleep(0)
    return value + 1


async def last(cx: Context, value: int) -> Done[list[int]]:
    loops.add(id(asyncio.get_running_loop()))
    return To.done([value, len(loops), os.getpid()])


chained = app.job("chained").step(first).step(between).step(last)


# Interrupts: each way to be busy, with a cleanup


def compute(seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


async def sleeps() -> None:
    await asyncio.sleep(60)


async def computes() -> None:
    compute()


async def child_sleeps() -> None:
    await asyncio.create_task(sleeps())


async def child_computes() -> None:
    await asyncio.create_task(computes())


async def gathers() -> None:
    await asyncio.gather(sleeps(), sleeps())


async def group() -> None:
    async with asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(sleeps())


async def group_with_a_busy_body() -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(sleeps())
        await sleeps()


async def within_a_timeout() -> None:
    async with asyncio.timeout(50):
        await asyncio.wait_for(sleeps(), 40)


async def in_a_thread() -> None:
    await asyncio.to_thread(time.sleep, 2)


async def many_short_waits() -> None:
    while True:
        await asyncio.sleep(0)


ways = {
    way.__name__: way
    for way in (
        sleeps,
        computes,
        child_sleeps,
        child_computes,
        gathers,
        group,
        group_with_a_busy_body,
        within_a_timeout,
        in_a_thread,
        many_short_waits,
    )
}


async def busy(cx: Context, way: str) -> Done:
    seen = "nothing"
    try:
        with contextlib.suppress(Exception):
            await ways[way]()
    except Interrupt as error:
        seen = f"{type(error).__mro__[1].__name__}: {error}"
        raise
    except BaseExceptionGroup as group:  # a TaskGroup's body, at least in Python 3.11
        (inner,) = group.exceptions
        seen = f"{type(inner).__mro__[1].__name__}: {inner}"
        raise
    finally:
        await asyncio.sleep(0.05)  # the loop still works
        Path(os.environ["FOLDER"], way).write_text(seen)
    return To.done()


async def hands_over_in_spite(cx: Context) -> Done[str]:
    try:
        await asyncio.sleep(60)
    except Interrupt:
        async with asyncio.timeout(1):
            await asyncio.sleep(0.01)
        return To.done("partial")
    return To.done("whole")


async def swallows(cx: Context) -> Done:
    while True:
        with contextlib.suppress(BaseException):
            await asyncio.sleep(60)


async def told(cx: Context, name: str) -> Done:
    try:
        cx.log.info("waiting to be told")
        await asyncio.sleep(60)
    except asyncio.CancelledError as error:
        Path(os.environ["FOLDER"], name).write_text(str(error))
        raise
    return To.done()


async def edge(cx: Context, number: int) -> Done:
    """Ends around its timeout, now computing and now waiting."""
    end = time.monotonic() + 0.03 + (number * 7 % 90) / 1000
    await asyncio.sleep(end - time.monotonic() - 0.006)  # close to the timeout
    while time.monotonic() < end:
        compute(0.001)
        await asyncio.sleep(0.001)
    return To.done()


async def calm(cx: Context, number: int) -> Done[int]:
    await asyncio.sleep(0.001)
    return To.done(number)


interrupted = app.job("interrupted").step(busy, timeout=short, retry=once)
partial = app.job("partial").step(hands_over_in_spite, timeout=short, retry=once)
stubborn = app.job("stubborn").step(swallows, timeout=short, retry=once)
waiting = app.job("waiting").step(told)
edges = app.job("edges").step(edge, timeout=timedelta(milliseconds=50), retry=once)
calms = app.job("calms").step(calm, retry=once)


# Tasks left behind


async def leaves_tasks(cx: Context) -> Done[str]:
    asyncio.create_task(_goes_on("left behind"), name="straggler")  # noqa: RUF006
    await asyncio.sleep(0)
    return To.done("done")


async def _goes_on(mark: str) -> None:
    try:
        await asyncio.sleep(60)
    finally:
        Path(os.environ["FOLDER"], mark).touch()


async def leaves_a_slow_task(cx: Context) -> Done[str]:
    """Clean up until the step is interrupted, and a little longer."""
    _tasks.add(asyncio.create_task(_cleans_up_slowly(), name="slow"))
    await asyncio.sleep(0)
    return To.done("done")


async def _cleans_up_slowly() -> None:
    try:
        await asyncio.sleep(60)
    finally:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(0.01)


async def counts_tasks(cx: Context) -> Done[int]:
    return To.done(len(asyncio.all_tasks()))


async def raises(cx: Context, how: str) -> Done:
    match how:
        case "SystemExit":
            raise SystemExit("from the step")
        case "SystemExit in a task":
            await asyncio.create_task(_exits())
        case "KeyboardInterrupt in a callback":
            asyncio.get_running_loop().call_soon(_interrupts)
            await asyncio.sleep(60)
        case "CancelledError":
            raise asyncio.CancelledError("of its own")
        case "stops the loop":
            asyncio.get_running_loop().stop()
            await asyncio.sleep(60)
        case "returns None":
            return None  # type: ignore[return-value]
    raise ValueError(how)


async def _exits() -> None:
    raise SystemExit("from a task")


def _interrupts() -> None:
    raise KeyboardInterrupt


async def refused(cx: Context) -> Done[list[str]]:
    """The errors of calls that are not allowed in a step: in the coroutine, a task and a thread."""
    said = []

    def tries() -> None:
        try:
            calms.enqueue(1)
        except InsideStep as error:
            said.append(str(error))

    async def tries_in_a_task() -> None:
        tries()

    tries()
    await asyncio.create_task(tries_in_a_task())
    await asyncio.to_thread(tries)
    await asyncio.get_running_loop().run_in_executor(None, tries)
    cx.enqueue(calms, 7)
    return To.done(said)


async def looks(cx: Context, connections: int) -> Done[str]:
    async with contextlib.AsyncExitStack() as held:
        for _ in range(connections):
            await held.enter_async_context(aio.connection(app))
        return To.done(await (await aio.get_run(app, cx.run_id)).status())


leaving = app.job("leaving").step(leaves_tasks)
looking = app.job("looking").step(looks)
leaving_slowly = app.job("leaving-slowly").step(leaves_a_slow_task, timeout=short, retry=once)
alone = app.job("alone").step(counts_tasks)
raising = app.job("raising").step(raises, retry=once)
refusing = app.job("refusing").step(refused)


# State


class Opened:
    """An object that is created once in each worker, with its own task."""

    def __init__(self) -> None:
        self.calls = 0
        self.ticks = 0

    async def tick(self) -> None:
        while True:
            self.ticks += 1
            await asyncio.create_task(asyncio.sleep(0.001))


_tasks: set[asyncio.Task[Any]] = set()


def make() -> Opened:
    return Opened()


async def open_async() -> Opened:
    await asyncio.sleep(0.01)
    opened = Opened()
    _tasks.add(asyncio.create_task(opened.tick()))
    return opened


def count(cx: Context[Opened], value: int) -> To[int, Never]:
    cx.state.calls += 1
    return To.next(cx.state.calls)


async def count_async(cx: Context[Opened], calls: int) -> Done[list[int]]:
    ticks = cx.state.ticks
    await asyncio.sleep(0.02)
    return To.done([calls, cx.state.ticks - ticks, os.getpid()])


def stateless(cx: Context) -> Done[bool]:
    return To.done(cx.state is None)


def fails_at_first() -> int:
    marker = Path(os.environ["FOLDER"], "tried")
    if not marker.exists():
        marker.touch()
        raise LookupError("no model")
    return 42


async def never_ends() -> int:
    await asyncio.sleep(60)
    return 1


def gives_state(cx: Context[int]) -> Done[int]:
    return To.done(cx.state)


quick = RetryPolicy(max_attempts=2, initial_interval=timedelta(milliseconds=20))
counting = app.job("counting", state=make).step(count).step(count_async)
counting_async = app.job("counting-async", state=open_async).step(count).step(count_async)
without_state = app.job("without-state").step(stateless)
failing_state = app.job("failing-state", state=fails_at_first).step(gives_state, retry=quick)
slow_state = app.job("slow-state", state=never_ends).step(gives_state, retry=once, timeout=short)
