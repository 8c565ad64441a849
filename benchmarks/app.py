"""The app that the supervisors of the benchmarks serve."""

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


def weigh(cx: Context, text: str) -> Done:
    work.weigh(text)
    return To.done()


def clock(cx: Context, value: int) -> Done[int]:
    return To.done(work.clock(value))


def announce(cx: Context, address: str) -> Done:
    work.announce(address)
    return To.done()


def kill(cx: Context, value: int) -> Done:
    work.kill(value)
    return To.done()


noop = app.job("noop").step(nothing)
two_step = app.job("two-step").step(first).step(nothing)
burner = app.job("burner").step(burn)
weighers = app.job("weighers").step(weigh)
clocks = app.job("clocks").step(clock)
# One crash ends the run: it must not come back, and take a place, while other kills are being measured.
announcers = app.job("announcers").step(announce, max_crashes=1)
# Before the others, or it would be at the end of their backlog.
poison = app.job("poison").step(kill, priority=1000)
