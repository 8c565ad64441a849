"""Steps for supervisors that die, stop, or lose their database. HOSTILE_FOLDER is a folder."""

import ctypes
import os
import signal
import time
from datetime import timedelta
from pathlib import Path

from apps import hostile

from underway import Context, Done, Interrupt, RetryPolicy, To, Underway

app = Underway()

second = timedelta(seconds=1)
quick = RetryPolicy(initial_interval=timedelta(milliseconds=20))


def hold_the_gil(seconds: float) -> None:
    """Sleep like C code that holds the GIL: no other thread and no signal handler runs."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])  # otherwise usleep would end at the first signal
    ctypes.PyDLL(None).usleep(ctypes.c_uint(int(seconds * 1_000_000)))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])


def with_children(cx: Context, how: str) -> Done[int]:
    """At its first attempt, start children that try to survive, and do not end."""
    if cx.attempt == 1:
        hostile.start_daemons()
        if how == "in C":
            hold_the_gil(60)
        time.sleep(60)
    return To.done(cx.attempt)


def at_first(cx: Context, seconds: float) -> Done[int]:
    """Sleep for this long at the first attempt."""
    if cx.attempt == 1:
        hold_the_gil(seconds)
    return To.done(cx.attempt)


def short(cx: Context, number: int) -> Done[int]:
    time.sleep(0.002)
    return To.done(number)


def until_told(cx: Context, name: str) -> Done[str]:
    """Run until a file with this name exists."""
    while not Path(os.environ["HOSTILE_FOLDER"], name).exists():
        time.sleep(0.01)
    return To.done(name)


def tidy(cx: Context, name: str) -> Done:
    try:
        time.sleep(60)
    except Interrupt as error:
        Path(os.environ["HOSTILE_FOLDER"], name).write_text(str(error))
        raise
    return To.done()


def in_c(cx: Context, seconds: float) -> Done:
    hold_the_gil(seconds)
    return To.done()


parents = app.job("parents").step(with_children, lease=second)
firsts = app.job("firsts").step(at_first, lease=second)
shorts = app.job("shorts").step(short, lease=2 * second)
told = app.job("told").step(until_told, lease=5 * second)
tidying = app.job("tidying").step(tidy, lease=5 * second)
c_code = app.job("c-code").step(in_c, lease=5 * second)
