"""Runs of several steps, between which their supervisor dies, stops, or has other code than another supervisor.

STAYING_FOLDER is a folder; STAYING_QUEUE is the queue of the second steps, which makes another manifest of this app.
"""

import os
import signal
import time
from datetime import timedelta
from pathlib import Path

from underway import Context, Done, To, Underway

app = Underway()

second = timedelta(seconds=1)
QUEUE = os.environ.get("STAYING_QUEUE", "default")


def folder() -> Path:
    return Path(os.environ["STAYING_FOLDER"])


def note(name: str) -> None:
    """Add a line to a file, so that the lines count the executions of a step."""
    with (folder() / name).open("a") as file:
        file.write("once\n")


def kill_supervisor(number: signal.Signals) -> None:
    """Send the supervisor a signal, and wait for the end of this process."""
    os.kill(os.getppid(), number)
    time.sleep(60)


def begin(cx: Context, seconds: float) -> To[float]:
    time.sleep(seconds)
    return To.next(seconds)


def finish(cx: Context, seconds: float) -> Done:
    time.sleep(seconds)
    return To.done()


def first(cx: Context, where: str) -> To[str]:
    note("first")
    if where == "end of first" and cx.attempt == 1:
        kill_supervisor(signal.SIGKILL)
    return To.next(where)


def last(cx: Context, where: str) -> Done[int]:
    if where == "begin of last" and cx.attempt == 1:
        kill_supervisor(signal.SIGKILL)
    note("last")
    return To.done(cx.attempt)


def until_told(cx: Context, name: str) -> To[str]:
    note(f"{name} began")
    while not (folder() / name).exists():
        time.sleep(0.01)
    return To.next(name)


def goes_on(cx: Context, name: str) -> Done[str]:
    return To.done(name)


pairs = app.job("pairs").step(begin, lease=2 * second).step(finish, lease=2 * second)
dying = app.job("dying").step(first, lease=second).step(last, lease=second)
split = app.job("split").step(begin, name="here").step(finish, name="there", queue=QUEUE)
told = app.job("told").step(until_told, lease=60 * second).step(goes_on, lease=60 * second)
