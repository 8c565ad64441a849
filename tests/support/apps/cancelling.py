"""Steps that are cancelled. They record what happens in files of the folder STAGE."""

import os
import time
from datetime import timedelta
from pathlib import Path

from apps.doomed import hold_the_gil

from underway import Context, Done, Interrupt, Retry, RetryPolicy, To, Underway

app = Underway()

second = timedelta(seconds=1)


def say(name: str, text: str = "") -> None:
    Path(os.environ["STAGE"], name).write_text(text)


def first(cx: Context, how: str) -> To[str]:
    """Run until the interrupt, and then do what the input says."""
    cx.enqueue(echoes, "a child")
    try:
        say(f"began {how}", str(os.getpid()))
        time.sleep(60)
    except Interrupt as error:
        say(f"interrupted {how}", str(error))
        if how == "cleans up":
            raise
        if how == "retries":
            raise Retry from error
        if how == "dies":
            os._exit(3)
        if how == "does not end":
            hold_the_gil(60)
        if how == "outlives its supervisor":
            time.sleep(60)
    return To.next(how)


def second_step(cx: Context, how: str) -> Done:
    say(f"went on {how}")
    return To.done()


def short(cx: Context, number: int) -> Done[int]:
    time.sleep(0.002)
    return To.done(number)


def echo(cx: Context, value: str) -> Done[str]:
    return To.done(value)


stoppable = app.job("stoppable").step(first, lease=20 * second, retry=RetryPolicy(max_attempts=2)).step(second_step)
short_lived = app.job("short-lived").step(first, lease=3 * second).step(second_step)
shorts = app.job("shorts").step(short)
echoes = app.job("echoes").step(echo)
