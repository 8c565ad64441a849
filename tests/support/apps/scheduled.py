"""Jobs that schedules enqueue."""

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from underway import Context, Done, Retry, RetryPolicy, To, Underway

app = Underway()


@dataclass
class Site:
    number: int


def begin(cx: Context, site: Site) -> To[list[datetime | None]]:
    return To.next([cx.scheduled_at])


def go_on(cx: Context, seen: list[datetime | None]) -> To[list[datetime | None]]:
    return To.next([*seen, cx.scheduled_at])


def end(cx: Context, seen: list[datetime | None]) -> Done[list[datetime | None]]:
    if cx.attempt == 1:
        raise Retry("once more")
    return To.done([*seen, cx.scheduled_at])


def number(cx: Context, site: Site) -> Done[int]:
    return To.done(site.number)


def anything(cx: Context, value: dict[str, Any]) -> Done[dict[str, Any]]:
    return To.done(value)


def nothing(cx: Context) -> Done:
    return To.done()


def sleep(cx: Context, seconds: float) -> Done:
    time.sleep(seconds)
    return To.done()


def refused(cx: Context) -> Done[str]:
    try:
        reports.schedule("@daily", Site(1))
    except Exception as error:
        return To.done(f"{type(error).__name__}: {error}")
    return To.done("nothing was refused")


reports = (
    app.job("reports")
    .step(begin)
    .step(go_on)
    .step(end, retry=RetryPolicy(initial_interval=timedelta(milliseconds=20), jitter=0))
)
numbers = app.job("numbers").step(number)
sleeping = app.job("sleeping").step(sleep)
refusing = app.job("refusing").step(refused)
unique = app.job("unique").step(number, unique_key="site {number}")
in_line = app.job("in line").step(number, concurrency_key="site {number}", concurrency_limit=2)
both = app.job("both").step(
    anything,
    queue="q",
    priority=4,
    delay=timedelta(hours=1),
    unique_key="{site.number}",
    concurrency_key="{site.name}",
    concurrency_limit=3,
)
# Never executed, so the runs that its schedules enqueue can be counted.
later = app.job("later").step(
    nothing, queue="tomorrow", priority=3, delay=timedelta(days=1), keep=timedelta(days=2, seconds=0.5)
)
