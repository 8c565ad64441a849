"""A step that runs until its file exists, and one that returns the open descriptors of its worker."""

import os
import time
from pathlib import Path

from underway import Context, Done, To, Underway

app = Underway()


def stay(cx: Context, name: str) -> Done:
    folder = Path(os.environ["STAGE"])
    (folder / name).touch()
    while not (folder / f"{name}.end").exists():
        time.sleep(0.01)
    return To.done()


def look(cx: Context) -> Done[dict[str, str]]:
    return To.done(descriptors())


def descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the listing itself
            continue
    return found


busy = app.job("busy").step(stay)
looking = app.job("looking").step(look)
