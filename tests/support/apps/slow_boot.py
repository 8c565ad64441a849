"""An app that takes so many seconds to import as SLOW_BOOT says, or longer than a test waits."""

import os
import time

from underway import Context, Done, To, Underway

app = Underway()
time.sleep(float(os.environ.get("SLOW_BOOT", "30")))


def work(cx: Context) -> Done:
    return To.done()


works = app.job("works").step(work)
