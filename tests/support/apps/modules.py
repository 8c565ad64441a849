"""A step that returns the modules that its worker has imported."""

import sys

from underway import Context, Done, To, Underway

app = Underway()


def imported(cx: Context) -> Done[list[str]]:
    return To.done(sorted(sys.modules))


modules = app.job("modules").step(imported)
