"""A step that leaves behind a thread in the middle of its first `cx.tx`; psycopg has not been imported before."""

import sys
import threading
import time

from underway import Context, Done, RetryPolicy, To, Underway

app = Underway()
once = RetryPolicy(max_attempts=1)


def leave(cx: Context) -> Done:
    threading.Thread(target=lambda: cx.tx.execute("select 1"), daemon=True).start()
    while "psycopg" not in sys.modules:
        time.sleep(0)
    return To.done()


def nothing(cx: Context, number: int) -> Done[int]:
    time.sleep(0.02)
    return To.done(number)


leaves = app.job("leaves").step(leave, retry=once)
nothings = app.job("nothings").step(nothing, retry=once)
