"""A job whose second step fails for good, in a queue with a dead-letter label."""

import os
from datetime import timedelta

from underway import Context, Done, Fail, RetryPolicy, To, Underway

app = Underway()
app.queue("pdf", dead_letter="pdf-dead")


def ask(cx: Context, how: str) -> To[str]:
    return To.next(how)


def render(cx: Context, how: str) -> Done[str]:
    if how == "gives up":
        raise Fail("never")
    if how == "is used up":
        raise ValueError("again")
    if how == "crashes":
        os._exit(7)
    return To.done(f"rendered {how}, attempt {cx.attempt}")


quick = RetryPolicy(max_attempts=2, initial_interval=timedelta(milliseconds=1))
rendering = app.job("rendering").step(ask).step(render, queue="pdf", retry=quick, max_crashes=1)
