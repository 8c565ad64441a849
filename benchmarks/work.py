"""The work itself, exactly the same functions here and in the pools that underway is compared with."""

import os
import signal
import socket
import time
from contextlib import suppress

_LONG_SECONDS = 600


def nothing(_value: int) -> None:
    """The no-op: what remains is the price of getting there and back."""


def identity(value: int) -> int:
    """The first of two steps."""
    return value


def burn(milliseconds: int) -> None:
    """Use so much CPU time, however long that takes: a neighbour's load makes it slower, never cheaper.

    Of this thread: of two that burn side by side in a process, neither may count what the other has used.
    """
    end = time.thread_time() + milliseconds / 1000
    while time.thread_time() < end:
        pass


def weigh(_text: str) -> None:
    """Take what was sent: the price is in its way here."""


def clock(_value: int) -> int:
    """When this line was reached. CLOCK_MONOTONIC is one for all processes of a machine."""
    return time.monotonic_ns()


def kill(_value: int) -> None:
    """End this process as the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def announce(address: str) -> None:
    """Tell the benchmark who runs and since when, then hold the worker until it is killed."""
    reached = time.monotonic_ns()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mouth, suppress(OSError):
        mouth.sendto(f"{os.getpid()} {reached}".encode(), address)
    time.sleep(_LONG_SECONDS)
