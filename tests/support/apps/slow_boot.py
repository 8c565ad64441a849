"""An app whose import takes SLOW_BOOT seconds, by default longer than a test waits."""

import os
import time

from underway import Context, Done, To, Underway

app = Underway()
time.sleep(float(os.environ.get("SLOW_BOOT", "30")))


def work(cx: Context) -> Done:
    return To.done()


works = app.job("works").step(work)
