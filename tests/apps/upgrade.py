"""What the old package and this one serve side by side: only what both know, unless the environment says NEW.

Each step leaves a line in the file that JOURNAL names; what is to be one at a time also says so if it was not.
"""

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from underway import Context, Done, RetryPolicy, To, Underway

NEW = "NEW" in os.environ

app = Underway()

# What only this version's code says of a job: the other serves its runs all the same.
key: dict[str, Any] = {"concurrency_key": "the only one"} if NEW else {}
quick = RetryPolicy(max_attempts=5, initial_interval=timedelta(milliseconds=50))
lease: dict[str, Any] = {"lease": timedelta(seconds=1)}


def journal(cx: Context, what: str) -> None:
    line = f"{cx.run_id} {cx.step} {'new' if NEW else 'old'} {what}\n"
    with Path(os.environ["JOURNAL"]).open("a") as file:
        file.write(line)


def first(cx: Context, number: int) -> To[int]:
    if number % 7 == 0 and cx.attempt == 1:
        raise ValueError("only the first time")
    return To.next(number + 1)


def second(cx: Context, number: int) -> Done[int]:
    journal(cx, "done")
    return To.done(number + 1)


def alone(cx: Context, number: int) -> Done:
    mark = Path(os.environ["JOURNAL"]).with_name("alone")
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        journal(cx, "not alone")
        return To.done()
    time.sleep(0.02)
    mark.unlink()
    journal(cx, "done")
    return To.done()


def endless(cx: Context) -> Done:
    journal(cx, "began")
    time.sleep(600)
    return To.done()


plain = app.job("plain").step(first, retry=quick, **lease).step(second, retry=quick, **lease)
single = app.job("single").step(alone, **lease, **key)
forever = app.job("forever").step(endless, **lease)

if NEW:

    def only_new(cx: Context) -> Done:
        journal(cx, "done")
        return To.done()

    newer = app.job("newer").step(only_new, **lease)
