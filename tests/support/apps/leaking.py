"""Steps that leak in their worker."""

import time

from underway import Context, Done, To, Underway

app = Underway()

MIB = 2**20
left_behind: list[bytearray] = []


def leak(cx: Context, number: int) -> Done[int]:
    left_behind.append(bytearray(b"x" * 5 * MIB))
    time.sleep(0.05)
    return To.done(len(left_behind))


def count(cx: Context, number: int) -> Done[int]:
    left_behind.append(bytearray())
    return To.done(len(left_behind))


leaks = app.job("leaks").step(leak)
counts = app.job("counts").step(count)
