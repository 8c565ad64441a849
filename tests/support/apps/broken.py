"""An app whose import fails: as BROKEN says, or as the file BROKEN_FILE says while it exists."""

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

from underway import Context, Done, To, Underway

app: Any = Underway()


def step(cx: Context, value: int) -> Done[int]:
    return To.done(value)


def misfit(cx: Context, value: int) -> To[int]:
    return To.next(value)


fragile = app.job("fragile").step(step)

how = os.environ.get("BROKEN")
switch = Path(os.environ.get("BROKEN_FILE", "/nonexistent"))
if switch.exists():
    how = switch.read_text()

match how:
    case "raise":
        raise RuntimeError("this app is broken")
    case "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    case "segfault":
        ctypes.string_at(0)
    case "exit_0":
        os._exit(0)
    case "sys_exit":
        sys.exit("not today")
    case "no_app":
        app = "no app"
    case "misfit":
        app.job("endless").step(misfit)
