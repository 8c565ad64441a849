"""The work itself: underway and the pools it is compared with run exactly these functions."""

import os
import signal
import socket
import time
from contextlib import suppress

_LONG_SECONDS = 600


def nothing(_value: int) -> None:
    """The no-op: what remains is the overhead of the round trip."""


def identity(value: int) -> int:
    """The first of two steps."""
    return value


def burn(milliseconds: int) -> None:
    """Use this much CPU time, however long it takes: load from other processes makes it slower, never cheaper.

    It counts the CPU time of this thread, so that two threads of a process do not count each other's.
    """
    end = time.thread_time() + milliseconds / 1000
    while time.thread_time() < end:
        pass


def receive(_text: str) -> None:
    """Accept an input: its cost is in the transfer."""


def read_clock(_value: int) -> int:
    """The time at which the step started. CLOCK_MONOTONIC is shared by all processes of a machine."""
    return time.monotonic_ns()


def kill(_value: int) -> None:
    """Kill this process as the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def announce(address: str) -> None:
    """Report the PID and the start time to the benchmark, then block the worker until it is killed."""
    reached = time.monotonic_ns()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(OSError):
        sender.sendto(f"{os.getpid()} {reached}".encode(), address)
    time.sleep(_LONG_SECONDS)
