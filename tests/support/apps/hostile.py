"""Steps that damage their worker in every possible way. Each does so at its first attempt only."""

import ctypes
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from underway import Context, Done, RetryPolicy, To, Underway

app = Underway()

# The wire, as a stray write or a closing library would find it.
WIRE = int(sys.argv[2]) if "underway.worker" in sys.orig_argv else -1
MIB = 2**20

Scenario = Callable[[Context], Any]
scenarios: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    scenarios[function.__name__] = function
    return function


def misbehave(cx: Context, how: str) -> Done[Any]:
    if cx.attempt > 1:
        return To.done("survived")
    returned: Done[Any] = scenarios[how](cx)
    return returned


def mute(cx: Context, number: int) -> Done[int]:
    os.close(1)
    os.close(2)
    return To.done(number)


def innocent(cx: Context, number: int) -> Done[int]:
    time.sleep(0.002)
    return To.done(number)


def poison(cx: Context, how: str) -> Done:
    print("famous last words", flush=True)
    scenarios[how](cx)
    return To.done()


quick = RetryPolicy(max_attempts=3, initial_interval=timedelta(milliseconds=20))
hostile = app.job("hostile").step(misbehave, retry=quick)
innocents = app.job("innocents").step(innocent)
mutes = app.job("mutes").step(mute)
poisonous = app.job("poisonous").step(poison, max_crashes=2)


# Deaths


@scenario
def killed(cx: Context) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@scenario
def terminated(cx: Context) -> None:
    # Another scenario may have taken it, and blocked it, in the same worker.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    os.kill(os.getpid(), signal.SIGTERM)


@scenario
def segfault(cx: Context) -> None:
    ctypes.string_at(0)


@scenario
def segfault_with_large_files(cx: Context) -> None:
    """The kernel closes files one after the other, the socket among the first."""
    file = os.memfd_create("large")
    for _ in range(500):
        os.write(file, bytes(2**20))
    ctypes.string_at(0)


@scenario
def abort(cx: Context) -> None:
    os.abort()


@scenario
def exit_0(cx: Context) -> None:
    os._exit(0)


@scenario
def exit_3(cx: Context) -> None:
    os._exit(3)


@scenario
def last_words(cx: Context) -> None:
    print("to be \0or not to be", flush=True)
    os._exit(1)


@scenario
def dies_writing(cx: Context) -> None:
    os.write(WIRE, b"\0\0\1\0\7\0\0")  # the first bytes of a frame
    os.kill(os.getpid(), signal.SIGKILL)


@scenario
def garbage_on_the_wire(cx: Context) -> None:
    os.write(WIRE, b"HTTP/1.1 200 OK\r\n\r\n")
    time.sleep(60)


@scenario
def closes_all_files(cx: Context) -> Done:
    os.closerange(0, 1024)
    return To.done()


@scenario
def closes_the_wire_and_goes_on(cx: Context) -> None:
    os.close(WIRE)
    time.sleep(60)


@scenario
def leaves_daemons(cx: Context) -> None:
    start_daemons()
    os.kill(os.getpid(), signal.SIGKILL)


# Failures


@scenario
def system_exit(cx: Context) -> None:
    sys.exit()


@scenario
def keyboard_interrupt(cx: Context) -> None:
    raise KeyboardInterrupt


@scenario
def returns_none(cx: Context) -> None:
    pass


@scenario
def unprintable(cx: Context) -> None:
    class UnprintableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

        __repr__ = __str__

    raise UnprintableError


@scenario
def unencodable(cx: Context) -> None:
    raise ValueError("NUL \0, half a pair \ud800")


@scenario
def recursion(cx: Context) -> None:
    recursion(cx)


@scenario
def chained_without_end(cx: Context) -> None:
    error = ValueError("the first")
    for _ in range(100_000):
        following = ValueError("the next")
        following.__cause__ = error
        error = following
    raise error


@scenario
def memory_error(cx: Context) -> None:
    bytearray(2**62)


@scenario
def base_exception(cx: Context) -> None:
    raise BaseException("not an Exception")


@scenario
def not_a_number(cx: Context) -> Done[float]:
    return To.done(float("nan"))


@scenario
def too_large(cx: Context) -> Done[str]:
    return To.done("x" * (9 * MIB))


@scenario
def no_json(cx: Context) -> Done[object]:
    return To.done(object())


@scenario
def million_lines(cx: Context) -> None:
    raise ValueError("line\n" * 1_000_000)


# Harmless ones, which succeed


@scenario
def nearly_too_large(cx: Context) -> Done[str]:
    return To.done("x" * (7 * MIB))


@scenario
def child_returns(cx: Context) -> Done[str]:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    return To.done("parent" if child else "child")


@scenario
def child_raises(cx: Context) -> Done[str]:
    child = os.fork()
    if not child:
        raise SystemExit("of the child")
    os.waitpid(child, 0)
    return To.done("parent")


@scenario
def takes_the_signals(cx: Context) -> Done[str]:
    # Except for faulthandler's signals and SIGCHLD, which other scenarios in this process need.
    numbers = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM]
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    return To.done("deaf")


@scenario
def removes_its_directory(cx: Context) -> Done[str]:
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    shutil.rmtree(folder)
    return To.done("nowhere")


@scenario
def logs_from_threads(cx: Context) -> Done[str]:
    # Threads that keep sending frames after the step, while a result needs many writes.
    for number in range(4):
        threading.Thread(target=_log_for_a_while, args=(number,), daemon=True).start()
    return To.done("x" * (7 * MIB))


def _log_for_a_while(number: int) -> None:
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        logging.getLogger("thread").info("%d %s", number, "y" * 5000)
        time.sleep(0.001)


# Descendants


def start_daemons() -> None:
    """Children that try to survive; each creates a file in HOSTILE_FOLDER that is named by its PID."""
    folder = Path(os.environ["HOSTILE_FOLDER"])
    before = len(os.listdir(folder))
    code = "import sys, os, time; open(sys.argv[1] + f'/{os.getpid()}', 'w'); time.sleep(600)"
    command = [sys.executable, "-S", "-c", code, str(folder)]
    plain = {"PATH": os.defpath}
    subprocess.Popen(command)
    subprocess.Popen(command, start_new_session=True)
    subprocess.Popen(command, env=plain)
    subprocess.Popen(command, env=plain, start_new_session=True)
    if os.fork() == 0:  # the classic daemon: its own session and environment, and adopted by another parent
        os.setsid()
        if os.fork() == 0:
            os.chdir("/")
            os.execve(command[0], command, plain)
        os._exit(0)
    while len(os.listdir(folder)) < before + 5:
        time.sleep(0.01)
