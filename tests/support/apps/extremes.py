"""Jobs that accept any input, for runs that a test inserts directly."""

from datetime import timedelta
from typing import Any

from underway import Context, Done, RetryPolicy, To, Underway

app = Underway()

RETRY = RetryPolicy(max_attempts=2, initial_interval=timedelta(milliseconds=10))


def echo(cx: Context, value: Any) -> Done[Any]:
    return To.done(value)


plain = app.job("plain").step(echo, name="work", retry=RETRY, keep=timedelta(days=1))
keyed = app.job("keyed").step(echo, name="work", retry=RETRY, concurrency_key="key", concurrency_limit=1)
