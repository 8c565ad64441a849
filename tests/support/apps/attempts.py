"""Steps that read their context, use CPU time, or replace their worker's signal handler."""

import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from underway import Context, Done, Interrupt, RetryPolicy, To, Underway

app = Underway()

once = RetryPolicy(max_attempts=1)

BURN = "import sys, time\nwhile time.process_time() < float(sys.argv[1]): pass"


def look(cx: Context, number: int) -> Done[dict[str, Any]]:
    before = cx.deadline
    cx.log.info("number %d", number)
    again = (cx.run_id, cx.deadline, cx.log)
    assert again == (cx.run_id, before, cx.log)
    left = (before - datetime.now(UTC)).total_seconds()
    return To.done({"run": str(cx.run_id), "logger": cx.log.name, "attempt": cx.attempt, "left": left})


def end_a_child(cx: Context) -> Done[int]:
    """End a child with SIGINT, on which ffmpeg completes its file."""
    child = subprocess.Popen(["sleep", "60"])
    child.send_signal(signal.SIGINT)
    return To.done(child.wait(10))


def import_late(cx: Context, folder: str) -> Done[int]:
    sys.path[:0] = [folder]
    import slow_package  # type: ignore[import-not-found]

    return To.done(slow_package.part.value)


ending_a_child = app.job("ending-a-child").step(end_a_child, retry=once)
importing = app.job("importing").step(import_late, timeout=timedelta(seconds=2), retry=once)


def report_until(cx: Context, number: int) -> Done[int]:
    """Reports its number until it is interrupted."""
    try:
        while True:
            cx.progress(number, 100, note=str(cx.run_id))
            time.sleep(0.01)
    except Interrupt:
        return To.done(number)


def spend(cx: Context, how: str, seconds: float) -> None:
    if how == "itself":
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass
    elif how == "in a child":
        subprocess.run([sys.executable, "-S", "-c", BURN, str(seconds)], check=True)
    elif how == "in a child and its child":
        nested = "import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', *sys.argv[1:]], check=True)"
        subprocess.run([sys.executable, "-S", "-c", nested, BURN, str(seconds)], check=True)
    elif how == "in a child that is not waited for":
        subprocess.Popen([sys.executable, "-S", "-c", BURN, str(seconds)])
        time.sleep(2 * seconds)


def cost(cx: Context, how: str) -> Done:
    spend(cx, how, 0.4)
    return To.done()


def fickle(cx: Context, how: str) -> Done[str]:
    if how == "blocks":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    elif how == "ignores":
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    elif how == "replaces":
        signal.signal(signal.SIGUSR1, lambda number, frame: None)
    elif how == "is long":
        try:
            time.sleep(60)
        except Interrupt:
            return To.done("interrupted")
    return To.done("done")


looks = app.job("looks").step(look, timeout=timedelta(seconds=1000))
reports = app.job("reports").step(report_until, timeout=timedelta(seconds=3))
costs = app.job("costs").step(cost, retry=once)
fickles = app.job("fickles").step(fickle, timeout=timedelta(seconds=0.5), retry=once)
