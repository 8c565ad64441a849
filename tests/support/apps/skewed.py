"""Steps that return the time of their host's clock."""

import time
from datetime import timedelta

from underway import Context, Done, Retry, To, Underway

app = Underway()


def tell(cx: Context) -> Done[float]:
    return To.done(time.time())


def take_three_leases(cx: Context) -> Done[int]:
    time.sleep(3)
    return To.done(cx.attempt)


def once_more(cx: Context) -> Done:
    if cx.attempt == 1:
        raise Retry("not yet", after=timedelta(seconds=1))
    return To.done()


clocks = app.job("clocks").step(tell)
long = app.job("long").step(take_three_leases, lease=timedelta(seconds=1))
again = app.job("again").step(once_more)
hourly = app.job("hourly").step(tell)
