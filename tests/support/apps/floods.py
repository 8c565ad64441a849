"""Steps that print, send and hand over too much."""

import logging
import os
import random
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from underway import Context, Done, RetryPolicy, To, Underway
from underway.payload.codec import MAX_PAYLOAD

app = Underway()

MIB = 2**20
LEASE = timedelta(seconds=6)
once = RetryPolicy(max_attempts=1)


# Everything at once, as fast as it goes


def log_records(cx: Context, said: int) -> None:
    cx.log.info("%d %s", said, "record " * 30)


def output(cx: Context, said: int) -> None:
    os.write(1, (b"x" * 99 + b"\n") * 500)


def short_lines(cx: Context, said: int) -> None:
    # Each of them is read as a line.
    os.write(2, b"\n" * 60_000)


def progress(cx: Context, said: int) -> None:
    cx.progress(said, 1_000_000, note="so far " * 20)


HOWS: dict[str, Callable[[Context, int], None]] = {
    how.__name__: how for how in (log_records, output, short_lines, progress)
}


def flood(cx: Context, how: str) -> Done[str]:
    """Flood in this way, in "everything", or at random by a seed; then return a megabyte."""
    rng = random.Random(how)
    hows = [HOWS[how]] if how in HOWS else list(HOWS.values())
    said, end = 0, time.monotonic() + float(os.environ["FLOOD_SECONDS"])
    while time.monotonic() < end:
        said += 1
        rng.choice(hows)(cx, said)
    return To.done("x" * MIB)


def result(cx: Context, number: int) -> Done[str]:
    return To.done("y" * 200_000)


floods = app.job("floods").step(flood, lease=LEASE, retry=once)
results = app.job("results").step(result, lease=LEASE, retry=once)


# At the limit, and one byte more


def text_of(size: int) -> str:
    """A text whose JSON has this size."""
    return random.Random(size).randbytes(MIB).hex()[: size - 2].ljust(size - 2, "z")


def returns(cx: Context, over: int) -> Done[str]:
    return To.done(text_of(MAX_PAYLOAD + over))


def hands_over(cx: Context, over: int) -> To[str]:
    return To.next(text_of(MAX_PAYLOAD + over))


def measures(cx: Context, text: str) -> Done[int]:
    return To.done(len(text))


returning = app.job("returning").step(returns, retry=once)
chained = app.job("chained").step(hands_over, retry=once).step(measures, retry=once)
measuring = app.job("measuring").step(measures, retry=once)


# Far too much


def long_error(cx: Context) -> None:
    raise ValueError("beginning " + "x" * (50 * MIB) + " end")


def many_lines(cx: Context) -> None:
    raise ValueError("beginning\n" + "line\n" * 1_000_000 + "end")


def long_record(cx: Context) -> None:
    cx.log.info("beginning %s end", "r" * (50 * MIB))


def long_name(cx: Context) -> None:
    logging.getLogger("n" * (50 * MIB)).info("of a logger with a name")


def long_note(cx: Context) -> None:
    cx.progress(1, 2, "beginning " + "n" * (50 * MIB) + " end")


def long_line(cx: Context) -> None:
    _write_all(b"l" * (50 * MIB))


def empty_lines(cx: Context) -> None:
    _write_all(b"\n" * (2 * MIB))


def _write_all(data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(1, left) :]


DEEDS: dict[str, Callable[[Context], Any]] = {
    action.__name__: action
    for action in (long_error, many_lines, long_record, long_name, long_note, long_line, empty_lines)
}


def exaggerate(cx: Context, how: str) -> Done:
    DEEDS[how](cx)
    return To.done()


exaggerating = app.job("exaggerating").step(exaggerate, retry=once, lease=LEASE)


# Children


def leaf(cx: Context, value: Any) -> Done:
    return To.done()


leaves = app.job("leaves").step(leaf, delay=timedelta(hours=1))


def parent(cx: Context, how: str) -> Done[int]:
    """Enqueue this many children of this size each: "10000 x 10"."""
    count, size = map(int, how.split(" x "))
    value = text_of(size)
    for _ in range(count):
        cx.enqueue(leaves, value)
    return To.done(count)


parents = app.job("parents").step(parent, retry=once, lease=LEASE)


# A worker that stops reading


def short(cx: Context, text: str) -> Done[int]:
    """Return at once, or stop the own process."""
    if text == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    return To.done(cx.attempt)


shorts = app.job("shorts").step(short, retry=once, timeout=timedelta(minutes=1))
timed = app.job("timed").step(short, retry=once, timeout=timedelta(seconds=2))
