"""Steps that reach their limits."""

import contextlib
import ctypes
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from underway import Context, Done, Fail, Interrupt, RetryPolicy, To, Underway
from underway.wire import frames, messages

app = Underway()

once = RetryPolicy(max_attempts=1)
second = timedelta(seconds=1)


def hold_the_gil(seconds: float) -> None:
    """Sleep like C code that holds the GIL: no other thread and no signal handler runs."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])  # otherwise usleep would end at the first signal
    ctypes.PyDLL(None).usleep(ctypes.c_uint(int(seconds * 1_000_000)))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])


def hang_without_the_gil() -> None:
    """Block like C code that computes for minutes, but without CPU time: wait for a lock that is never released."""
    lock = ctypes.create_string_buffer(256)  # zeroed and larger than any pthread_mutex_t: an unlocked mutex
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(lock)


# Soft timeouts


def tidy(cx: Context, folder: str) -> Done:
    while True:
        try:
            with contextlib.suppress(Exception):
                time.sleep(60)
        finally:
            time.sleep(0.3)
            Path(folder, str(cx.run_id)).write_text("cleaned")


def catches_it(cx: Context) -> Done[str]:
    try:
        time.sleep(60)
    except Interrupt:
        return To.done("partial result")
    return To.done("whole result")


def beside_a_thread(cx: Context) -> Done:
    # The interrupt must reach the step at any point of what its threads write.
    stopped = threading.Event()

    def chatter() -> None:
        while not stopped.wait(0.0005):
            cx.log.info("chatter")

    threads = [threading.Thread(target=chatter) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(60)
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
    return To.done()


def leaves_children(cx: Context, folder: str) -> Done:
    """One in its own session, and one whose parent has exited."""
    stay = "import os, sys, time; open(sys.argv[1] + f'/{os.getpid()}', 'w').close(); time.sleep(60)"
    command = [sys.executable, "-S", "-c", stay, folder]
    subprocess.Popen(command, start_new_session=True, env={})
    if os.fork() == 0:
        subprocess.Popen(command, start_new_session=True)
        os._exit(0)
    os.wait()
    time.sleep(60)
    return To.done()


def takes_the_signal(cx: Context) -> Done:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    return To.done()


@dataclass
class Slow:
    """An input that takes long to decode."""

    seconds: float

    def __post_init__(self) -> None:
        if "underway.worker" in sys.orig_argv:
            time.sleep(self.seconds)


def begins_late(cx: Context, slow: Slow) -> Done:
    time.sleep(60)
    return To.done()


late = app.job("late").step(begins_late, timeout=second / 2, retry=once)
tidying = app.job("tidying").step(tidy, timeout=second / 2, retry=once)
catching = app.job("catching").step(catches_it, timeout=second / 2, retry=once)
chattering = app.job("chattering").step(beside_a_thread, timeout=second / 2, retry=once)
leaving = app.job("leaving").step(leaves_children, timeout=second / 2, retry=once)
taking = app.job("taking").step(takes_the_signal)


# Hard timeouts


def stubborn(cx: Context, how: str) -> Done:
    match how:
        case "in C":
            hold_the_gil(60)
        case "ignores it":
            while True:
                with contextlib.suppress(BaseException):
                    time.sleep(60)
        case "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(60)
        case "blocks all signals":
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            time.sleep(60)
        case "in C without the GIL":
            hang_without_the_gil()
        case "waits for a daemon":
            start_daemon(["sleep", "60"])
            hold_the_gil(60)
        case "floods the log":
            while True:
                with contextlib.suppress(BaseException):
                    logging.getLogger("flood").info("x" * 200)
        case "floods the wire" | "floods the wire at the end":
            # Faster than the supervisor can read; level 1 is not logged.
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
            time.sleep(4.5 if "at the end" in how else 0)
            flood = unsent = memoryview(frames.encode(messages.Log(0, 1, "flood", None, {}, b"x")) * 2000)
            while True:
                unsent = unsent[os.write(int(sys.argv[2]), unsent) :] or flood
    return To.done()


def crowd(cx: Context, count: int) -> Done:
    """Start this many spinning processes; the step itself ignores its interrupt."""
    waiting, start = os.pipe()
    spin = ["/bin/sh", "-c", "read line; while :; do :; done"]
    crowd: list[subprocess.Popen[bytes]] = []
    while len(crowd) < count:
        with contextlib.suppress(BaseException):  # on a busy machine the interrupt may come this early
            crowd.append(subprocess.Popen(spin, stdin=waiting))
    os.close(start)
    while crowd:
        with contextlib.suppress(BaseException):
            time.sleep(60)
    return To.done()


def matches_for_ever(cx: Context) -> Done:
    # C code that checks for signals sometimes; most C code does not.
    re.match("(a+)+$", "a" * 60 + "b")
    return To.done()


def start_daemon(command: list[str]) -> None:
    """A daemon with its own session and environment; its PID is written to LIMITS_FOLDER."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            Path(os.environ["LIMITS_FOLDER"], str(os.getpid())).touch()
            os.execve(shutil.which(command[0]) or "", command, {})
        os._exit(0)
    os.wait()


backtracking = app.job("backtracking").step(matches_for_ever, timeout=second / 2, retry=once)
crowding = app.job("crowding").step(crowd, timeout=10 * second, retry=once)
stubbornness = app.job("stubbornness").step(stubborn, timeout=second / 2, retry=once)


# Memory


def fill(cx: Context, how: str) -> Done:
    code = "import time; x = bytearray(b'x') * (200 << 20); time.sleep(60)"
    match how:
        case "itself":
            exec(code)
        case "child":
            subprocess.run([sys.executable, "-c", code])
        case "detached child":
            subprocess.run([sys.executable, "-c", code], start_new_session=True, env={})
        case "daemon":
            start_daemon([sys.executable, "-c", code])
            hold_the_gil(60)
        case "several together":
            part = code.replace("200", "45")
            for _ in range(4):
                subprocess.Popen([sys.executable, "-c", part], start_new_session=True)
            time.sleep(60)
        case "itself, stopped":
            block = bytearray(b"x") * (200 << 20)
            os.kill(os.getpid(), signal.SIGSTOP)
            del block
        case "itself, in C":
            libc = ctypes.PyDLL(None)
            libc.malloc.restype = ctypes.c_void_p
            libc.memset(ctypes.c_void_p(libc.malloc(200 << 20)), 1, ctypes.c_size_t(200 << 20))
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            hold_the_gil(60)
    return To.done()


def modest(cx: Context) -> Done:
    block = bytearray(b"x") * (50 << 20)
    time.sleep(1)
    del block
    return To.done()


filling = app.job("filling").step(fill, memory_limit="150 MiB", max_crashes=1)
modesty = app.job("modesty").step(modest, memory_limit="150 MiB")


# Other runs


def edge(cx: Context, number: int) -> Done:
    # End around the timeout, which is enforced at most a tick (50 ms) late.
    end = time.monotonic() + random.uniform(0.03, 0.12)
    time.sleep(end - time.monotonic() - 0.005)  # close to the timeout
    while time.monotonic() < end:
        pass
    return To.done()


def calm(cx: Context, number: int) -> Done:
    time.sleep(random.uniform(0, 0.003))
    return To.done()


def sleeper(cx: Context, seconds: float) -> Done:
    time.sleep(seconds)
    return To.done()


def busy_in_c(cx: Context, seconds: float) -> Done:
    if cx.attempt > 1:
        raise Fail("run twice")
    hold_the_gil(seconds)
    return To.done()


edges = app.job("edges").step(edge, timeout=timedelta(milliseconds=50), retry=once)
calms = app.job("calms").step(calm, retry=once)
sleepers = app.job("sleepers").step(sleeper)
c_code = app.job("c-code").step(busy_in_c, lease=second)
