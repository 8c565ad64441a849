"""Steps that kill their worker, or all processes of their supervisor."""

import ctypes
import os
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import psutil

from underway import Context, Done, Fail, To, Underway
from underway.definition.options import StepOptions

app = Underway()

LAST_LINE = "page 1,000 of 1,000"


def die(cx: Context, how: str) -> Done[str]:
    if Path(os.environ.get("POISON_CURED", "/nowhere")).exists():
        return To.done("cured")
    block = bytearray(b"x") * (150 << 20)
    for number in range(1, 1001):
        print(f"page {number:,} of 1,000")
    match how:
        case "segfault":
            # A common way to silence a native library.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            ctypes.string_at(0)
        case "exit":
            os._exit(7)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raises":
            raise Fail("only failed")
    return To.done(f"{len(block)}")


poisoned = app.job("poisoned").step(die, max_crashes=1, queue="poison")


def devour(cx: Context, mebibytes: int) -> Done[int]:
    blocks = [bytearray(b"x") * (1 << 20) for _ in range(mebibytes)]
    return To.done(len(blocks))


def wait_for_a_kill(cx: Context, folder: str) -> Done:
    Path(folder, f"{os.getpid()}").touch()
    time.sleep(60)
    return To.done()


devouring = app.job("devouring").step(devour, max_crashes=1)
waiting = app.job("waiting").step(wait_for_a_kill, max_crashes=1)


# Steps that kill the next task in their worker


def leave_a_timer(cx: Context, number: int) -> Done:
    threading.Timer(0.5, os._exit, [1]).start()
    time.sleep(0.2)
    return To.done()


def take_a_second(cx: Context, number: int) -> Done:
    time.sleep(1)
    return To.done()


leaving = app.job("leaving").step(leave_a_timer)
patient = app.job("patient").step(take_a_second)


# A container that runs out of memory as a whole

MOST_CRASHES = int(os.environ.get("POISON_MOST_CRASHES", "2"))
short: StepOptions = {"lease": timedelta(seconds=1), "max_crashes": MOST_CRASHES}


def take_all_along(cx: Context, folder: str) -> Done:
    """Kill supervisor, guardian and workers at once. They are stopped first, so none can react."""
    Path(folder, str(cx.attempt)).touch()
    supervisor = psutil.Process(os.getppid())
    others = [process for process in supervisor.children(recursive=True) if process.pid != os.getpid()]
    for process in [supervisor, *others]:
        process.suspend()
    for process in [
        *others,
        supervisor,
    ]:  # in this order, because this worker ends when it notices the supervisor's death
        process.kill()
    os.kill(os.getpid(), signal.SIGKILL)
    sys.exit("unreachable")


def innocent(cx: Context, number: int) -> Done[int]:
    time.sleep(0.002)
    return To.done(number)


culprits = app.job("culprits").step(take_all_along, **short)
innocents = app.job("innocents").step(innocent, **short)
