"""Steps that print, log and report progress."""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

from underway import Context, Done, To, Underway

app = Underway()

second = timedelta(seconds=1)


def say(cx: Context, word: str) -> Done:
    print(f"printed {word}")
    print(f"complained {word}", file=sys.stderr)
    cx.log.info("logged %s", word)
    cx.log.warning("warned of %s\nin two lines", word)
    cx.log.debug("too quiet: %s", word)
    return To.done()


def flood(cx: Context, seconds: float) -> Done:
    end = time.monotonic() + seconds
    line = b"x" * 99 + b"\n"
    while time.monotonic() < end:
        os.write(1, line * 500)
    return To.done()


def garbage(cx: Context, number: int) -> Done[int]:
    os.write(2, bytes(range(256)) * 10)
    os.write(1, b"\xff\xfe\0" * 30_000)  # a line that is too long to be kept
    os.write(1, b"\n\x1b[2J no end of line")
    cx.log.info("surrogate \ud800, NUL \0, %s", b"\xff")
    return To.done(number)


def report(cx: Context, name: str) -> Done:
    """Report progress until a file with this name exists."""
    done = 0
    while not Path(name).exists():
        done += 1
        cx.progress(done, 1_000_000, note="so far")
        time.sleep(0.001)
    return To.done()


def sit(cx: Context, seconds: float) -> Done[int]:
    time.sleep(seconds)
    return To.done(cx.attempt)


sayings = app.job("sayings").step(say)
floods = app.job("floods").step(flood)
garbled = app.job("garbled").step(garbage)
reports = app.job("reports").step(report)
sitting = app.job("sitting").step(sit, lease=second)
