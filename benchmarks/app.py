"""The app that the benchmarks' supervisors run."""

from benchmarks import work
from underway import Context, Done, To, Underway

app = Underway()


def nothing(cx: Context, value: int) -> Done:
    work.nothing(value)
    return To.done()


def first(cx: Context, value: int) -> To[int]:
    work.nothing(value)
    return To.next(value)


def burn(cx: Context, milliseconds: int) -> Done:
    work.burn(milliseconds)
    return To.done()


def receive(cx: Context, text: str) -> Done:
    work.receive(text)
    return To.done()


def read_clock(cx: Context, value: int) -> Done[int]:
    return To.done(work.read_clock(value))


def announce(cx: Context, address: str) -> Done:
    work.announce(address)
    return To.done()


def kill(cx: Context, value: int) -> Done:
    work.kill(value)
    return To.done()


noop = app.job("noop").step(nothing)
two_step = app.job("two-step").step(first).step(nothing)
burner = app.job("burner").step(burn)
receiver = app.job("receiver").step(receive)
clock_reader = app.job("clock-reader").step(read_clock)
# One crash fails the run: a retry would occupy a worker while the next kills are measured.
announcer = app.job("announcer").step(announce, max_crashes=1)
# High priority, so that it does not wait behind the backlog of the other jobs.
poison = app.job("poison").step(kill, priority=1000)
