"""Jobs with keys."""

import os
import time
from datetime import timedelta
from typing import Any

from underway import Context, Done, RetryPolicy, To, Underway

app = Underway()


def works(cx: Context, order: dict[str, Any]) -> Done[str]:
    time.sleep(float(order.get("seconds", 0)))
    return To.done("done")


def begins(cx: Context, order: dict[str, Any]) -> To[dict[str, Any]]:
    return To.next(order)


def ends(cx: Context, order: dict[str, Any]) -> Done[str]:
    return To.done("ended")


def crashes(cx: Context, order: dict[str, Any]) -> Done[str]:
    if order.get("crash"):
        os.abort()
    return To.done("survived")


QUICK = RetryPolicy(max_attempts=2, initial_interval=timedelta(milliseconds=20), jitter=0)

imports = app.job("imports").step(works, unique_key="{account}")
syncs = app.job("syncs").step(works, concurrency_key="{account}", retry=QUICK)
pairs = app.job("pairs").step(works, concurrency_key="{account}", concurrency_limit=2)
both = app.job("both").step(works, unique_key="{account}/{order}", concurrency_key="{account}")
same = app.job("same").step(begins, concurrency_key="{account}").step(ends, concurrency_key="{account}")
other = app.job("other").step(begins, retry=QUICK).step(ends, concurrency_key="{to.account}")
crashing = app.job("crashing").step(crashes, concurrency_key="{account}", max_crashes=1)
free = app.job("free").step(works)
