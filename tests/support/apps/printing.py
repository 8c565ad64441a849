"""Steps that print progress bars, or very much output."""

import os
import sys
import time

from underway import Context, Done, RetryPolicy, To, Underway

app = Underway()
once = RetryPolicy(max_attempts=1)
LINE = b"x" * 99 + b"\n"
MIB = 2**20


def write(text: str) -> None:
    left = text.encode()
    while left:
        left = left[os.write(2, left) :]


def bar(cx: Context, ends: str) -> Done:
    """Write a progress bar like tqdm's: each state begins with a CR. `ends` is written after the last state."""
    for done in range(2001):
        write(f"\rpages: {done / 20:.0f}%|{'#' * (done // 100):20}| {done}/2000")
    write(ends)
    return To.done()


def pages(cx: Context, number: int) -> Done:
    """Write states that end with a CR, text in between, and CR LF line ends."""
    write("page 1\rpage 2\rpage 3\r\n")
    write("50%\r100%\r    \r")
    write("a line\r\nanother\r\n")
    write("page 4\r")
    return To.done()


def chatter(cx: Context, mebibytes: int) -> Done:
    for _ in range(mebibytes * MIB // 100 // 100):
        os.write(1, LINE * 100)
    cx.log.info("not urgent")
    cx.log.error("urgent")
    return To.done()


def log_much(cx: Context, records: int) -> Done:
    for number in range(records):
        cx.log.info("record %d %s", number, "y" * 1000)
    return To.done()


def shout(cx: Context, records: int) -> Done:
    for number in range(records):
        cx.log.error("error %d %s", number, "z" * 1000)
    return To.done()


def crash(cx: Context, mebibytes: int) -> Done:
    for _ in range(mebibytes * MIB // 100 // 100):
        os.write(1, LINE * 100)
    write("these are my last words\n")
    sys.stdout.flush()
    os.abort()


def print_then_log(cx: Context, text: str) -> Done:
    time.sleep(0.02)  # apart from the output of the previous run
    print(f"{text} printed")
    cx.log.info("%s logged", text)
    return To.done()


bars = app.job("bars").step(bar, retry=once)
paging = app.job("paging").step(pages, retry=once)
chatting = app.job("chatting").step(chatter, retry=once)
logging_much = app.job("logging-much").step(log_much, retry=once)
shouting = app.job("shouting").step(shout, retry=once)
crashing = app.job("crashing").step(crash, retry=once, max_crashes=1)
print_and_log = app.job("print-and-log").step(print_then_log, retry=once)
