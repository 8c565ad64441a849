"""Steps that block until a file appears in FOLDER."""

import os
import time
from datetime import timedelta
from pathlib import Path

from underway import Context, Done, RetryPolicy, To, Underway

app = Underway()

second = timedelta(seconds=1)


def wait_for(name: str) -> None:
    folder = Path(os.environ["FOLDER"])
    (folder / f"{name} began").touch()
    while not (folder / name).exists():
        time.sleep(0.01)


def first(cx: Context, name: str) -> To[list[str]]:
    return To.next([name])


def last(cx: Context, names: list[str]) -> Done[list[str]]:
    wait_for(names[0])
    return To.done(names)


def work(cx: Context, name: str) -> To[str]:
    wait_for(name)
    return To.next(name)


def later(cx: Context, name: str) -> Done:
    return To.done()


def number(cx: Context, value: int) -> Done[int]:
    return To.done(value)


two = (
    app.job("two")
    .step(first, queue="one", priority=1, lease=second)
    .step(last, queue="two", priority=9, keep=timedelta(days=1), lease=second)
)
lasting = app.job("lasting").step(work, lease=second).step(later, delay=timedelta(hours=1))
patient = app.job("patient").step(work, lease=12 * second).step(later, delay=timedelta(hours=1))
numbers = app.job("numbers").step(number, retry=RetryPolicy(max_attempts=2, initial_interval=timedelta(0)))
