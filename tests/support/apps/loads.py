"""Jobs with large inputs and large results."""

from underway import Context, Done, To, Underway

app = Underway()


def measure(cx: Context, text: str) -> Done[int]:
    return To.done(len(text))


def repeat(cx: Context, size: int) -> Done[str]:
    return To.done("x" * size)


measured = app.job("measured").step(measure)
repeated = app.job("repeated").step(repeat)
