"""Steps that leave processes, shared memory and files behind, and the hooks of a worker's exit.

LEAVINGS is a folder.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path

from underway import Context, Done, Interrupt, RetryPolicy, To, Underway

app = Underway()

second = timedelta(seconds=1)
once = RetryPolicy(max_attempts=1)


def _folder() -> Path:
    return Path(os.environ["LEAVINGS"])


def _note(name: str, text: str) -> None:
    """Append a line with a single write, so that several processes may do so concurrently."""
    with open(_folder() / name, "a") as file:
        file.write(f"{text}\n")


# One body at a time


def alone(cx: Context, name: str) -> Done[str]:
    """Hold a lock while running, and note if another step holds it. Return when the file `name`.end exists."""
    with open(_folder() / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _note("two bodies", name)
        _note("begun", name)
        while not (_folder() / f"{name}.end").exists():
            with contextlib.suppress(Interrupt):
                time.sleep(0.01)
    return To.done(name)


def until_told(cx: Context, name: str) -> Done[int]:
    _note("begun", name)
    while not (_folder() / f"{name}.end").exists():
        time.sleep(0.01)
    return To.done(cx.attempt)


lonely = app.job("lonely").step(alone, concurrency_key="one", lease=2 * second)
patient = app.job("patient").step(until_told)


# Zombies


class Kept:
    """A state that keeps children for which a later task waits."""

    def __init__(self) -> None:
        self.popen: subprocess.Popen[bytes] | None = None
        self.forked = 0


def zombies() -> list[str]:
    """The states of this process's zombie children."""
    listed = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "stat="], capture_output=True, text=True)
    return [state for state in listed.stdout.split() if state.startswith("Z")]


def wrap(cx: Context, number: int) -> Done[int]:
    """Start a wrapper that leaves a grandchild behind, which exits soon afterwards."""
    subprocess.run(["sh", "-c", "(sleep 0.01 &)"], check=True)
    return To.done(len(zombies()))


def keep(cx: Context[Kept]) -> To[int]:
    """Start two children that exit at once, and an orphan. Wait for none of them."""
    cx.state.popen = subprocess.Popen(["sh", "-c", "(true &) ; exit 7"])
    cx.state.forked = os.fork()
    if not cx.state.forked:
        os._exit(8)
    for pid in (cx.state.popen.pid, cx.state.forked):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return To.next(1)


def orphan(cx: Context[Kept], number: int) -> To[int]:
    """Leave another orphan, in a step that is long enough for zombies to be reaped after it."""
    subprocess.run(["sh", "-c", "(true &)"], check=True)
    time.sleep(0.02)
    return To.next(number + 1)


def orphan_again(cx: Context[Kept], number: int) -> To[int]:
    return orphan(cx, number)


def ask(cx: Context[Kept], number: int) -> Done[list[int]]:
    """The exit codes of the two children, two steps later, and how many other zombies were not reaped."""
    assert cx.state.popen is not None
    left = len(zombies()) - 2
    _, status = os.waitpid(cx.state.forked, 0)
    return To.done([cx.state.popen.wait(), os.waitstatus_to_exitcode(status), left])


def siblings(cx: Context) -> Done[list[int]]:
    """Start several children in one step and wait for the last one first."""
    started = [subprocess.Popen(["sh", "-c", f"(true &) ; exit {code}"]) for code in range(5)]
    return To.done([child.wait() for child in reversed(started)])


wrapping = app.job("wrapping").step(wrap)
keeping = app.job("keeping", state=Kept).step(keep).step(orphan).step(orphan_again).step(ask)
sharing = app.job("sharing").step(siblings)


# Files, memory, and an imitated resource tracker

TRACKER = "from multiprocessing.resource_tracker import main;main(3)"
# It has the command line of a tracker, but starts a hidden process and does not exit.
PRETENDER = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    os.execve(sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(60)"], {})
open(sys.argv[2], "w").write(str(os.getpid()))
time.sleep(60)
"""


def _until_tracked() -> None:
    """Wait for the resource tracker's exec: until then its command line does not identify it."""
    tracker = vars(resource_tracker._resource_tracker)["_pid"]
    while (
        "SigIgn:\t0000000000000000" in (status := Path(f"/proc/{tracker}/status").read_text())
        or "(sleeping)" not in status
    ):
        time.sleep(0.01)


def litter(cx: Context, name: str) -> Done[str]:
    """In its first attempt, leave shared memory and files behind, and die."""
    folder = tempfile.gettempdir()
    if cx.attempt == 1:
        shared_memory.SharedMemory(create=True, size=4096, name=name)
        _until_tracked()
        Path(folder, "profile").mkdir()
        Path(folder, "profile", "file").write_text("large")
        _note("folders", folder)
        os.kill(os.getpid(), signal.SIGKILL)
    return To.done(folder)


def pretend(cx: Context, _: int) -> Done[int]:
    """In its first attempt, leave a process that imitates a resource tracker, and die."""
    if cx.attempt == 1:
        told = _folder() / "pretender"
        subprocess.Popen([sys.executable, "-S", "-c", PRETENDER, TRACKER, str(told)], start_new_session=True)
        while not told.exists() or not told.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return To.done(cx.attempt)


littering = app.job("littering").step(litter)
pretending = app.job("pretending").step(pretend)


# The end of a worker


@app.on_worker_end
def called_last() -> None:
    _note("ends", f"{os.getpid()} last")
    while (_folder() / "hang").exists():
        time.sleep(0.01)


@app.on_worker_end
def fails() -> None:
    raise ValueError("the collector is away")


def called_first() -> None:
    _note("ends", f"{os.getpid()} first")


app.on_worker_end(called_first)


def count(cx: Context, number: int) -> Done[int]:
    return To.done(os.getpid())


counting = app.job("counting").step(count)


# Hangs


def hang(cx: Context, how: str) -> Done[int]:
    if how == "blocks all signals":
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
    return To.done(sum(range(10**13)))


def grow(cx: Context, how: str) -> Done[int]:
    blocks = []
    while True:
        blocks.append(b"x" * (8 << 20))
        time.sleep(0.02)


hanging = app.job("hanging").step(hang, timeout=0.3 * second, retry=once)
growing = app.job("growing").step(grow, memory_limit="150 MiB", max_crashes=1)
