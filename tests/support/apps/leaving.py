"""Steps that change the state of their process, and a step that reports the state."""

import asyncio
import contextlib
import ctypes
import decimal
import faulthandler
import gc
import io
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from decimal import Decimal
from pathlib import Path
from typing import Any

from underway import Context, Done, To, Underway

app = Underway()

tenant: ContextVar[str] = ContextVar("tenant", default="-")
decimal.getcontext()  # creates a decimal context at import, which copies of the context would share
_streams = (sys.stdin, sys.stdout, sys.stderr)
_timers = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_signals = (signal.SIGALRM, signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGPIPE)

Action = Callable[[], Any]
actions: dict[str, Action] = {}


def action(function: Action) -> Action:
    actions[function.__name__] = function
    return function


@action
def a_deleted_folder() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)


@action
def a_umask() -> None:
    os.umask(0o277)


@action
def context_variables() -> None:
    tenant.set("tenant 7")
    decimal.getcontext().prec = 4


@action
def blocked_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


SHORT = tuple(actions)  # these are undone even after a very short step


@action
def timers() -> None:
    signal.alarm(1)
    signal.setitimer(signal.ITIMER_PROF, 100)
    signal.setitimer(signal.ITIMER_VIRTUAL, 100)
    faulthandler.dump_traceback_later(1, exit=True)


@action
def signal_handlers() -> None:
    for number in _signals:
        signal.signal(number, signal.SIG_IGN)


@action
def a_wakeup_descriptor() -> None:
    loop = asyncio.new_event_loop()
    loop.add_signal_handler(signal.SIGUSR2, print)


@action
def closed_descriptors() -> None:
    for number in (0, 1, 2):
        os.close(number)


@action
def redirected_descriptors() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)


@action
def replaced_streams() -> None:
    sys.stdin = sys.stdout = sys.stderr = io.StringIO()


@action
def no_faulthandler() -> None:
    faulthandler.disable()


@action
def a_low_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, hard))


@action
def tracing() -> None:
    sys.settrace(lambda *_: None)
    sys.setprofile(lambda *_: None)
    threading.settrace(lambda *_: None)
    threading.setprofile(lambda *_: None)


@action
def no_garbage_collector() -> None:
    gc.disable()


@action
def a_low_recursion_limit() -> None:
    sys.setrecursionlimit(150)


@action
def no_parent_death_signal() -> None:
    libc = ctypes.CDLL(None)
    libc.prctl(1, 0, 0, 0, 0)
    libc.prctl(36, 0, 0, 0, 0)


@action
def flags_of_descriptors() -> None:
    for number in (1, 2):
        os.set_blocking(number, False)
        os.set_inheritable(number, False)


@action
def reconfigured_streams() -> None:
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(encoding="ascii", errors="strict")


@action
def no_handlers_of_faults() -> None:
    for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS):
        signal.signal(number, signal.SIG_DFL)


RESTORED = tuple(actions)


@action
def detached_streams() -> None:
    """These are restored as new objects, too."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.detach()


@action
def closed_streams() -> None:
    """These are restored as new objects; code that kept references to the old ones has lost them."""
    for stream in _streams:
        stream.close()


@action
def a_limit_for_good() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if os.geteuid() == 0:  # root could raise the limit again
        os.setresuid(65534, 65534, 65534)


def leave(cx: Context, what: str) -> Done[int]:
    actions[what]()
    if what not in SHORT:
        time.sleep(0.002)  # long enough for a full check
    return To.done(os.getpid())


async def leave_async(cx: Context, what: str) -> Done[int]:
    return leave(cx, what)


def look(cx: Context, nothing: None) -> Done[dict[str, str]]:
    return To.done(state())


async def look_async(cx: Context, nothing: None) -> Done[dict[str, str]]:
    return To.done(state())


def state() -> dict[str, str]:
    """The visible state of the process, each part as text."""
    folder = None
    with contextlib.suppress(FileNotFoundError):
        folder = os.getcwd()
    umask = os.umask(0)
    os.umask(umask)
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    found = {
        "pid": os.getpid(),
        "folder": folder,
        "umask": umask,
        "tenant": tenant.get(),
        "third": str(Decimal("123456.78") / 3),
        "timers": [signal.getitimer(timer) for timer in _timers],
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "handlers": [repr(signal.getsignal(number)) for number in _signals],
        "wakeup": wakeup,
        "descriptors": [_file_behind(number) for number in (0, 1, 2)],
        "streams": [now is then for now, then in zip((sys.stdin, sys.stdout, sys.stderr), _streams, strict=True)],
        "encodings": [(stream.encoding, stream.errors) for stream in (sys.stdin, sys.stdout, sys.stderr) if stream],
        "flags": [(os.get_blocking(number), os.get_inheritable(number)) for number in (0, 1, 2)],
        "prctl": [_asked(option) for option in (2, 37)],
        "caught": _caught(),
        "faulthandler": faulthandler.is_enabled(),
        "limits": {
            name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")
        },
        "traced": [repr(look()) for look in (sys.gettrace, sys.getprofile, threading.gettrace, threading.getprofile)],
        "collected": gc.isenabled(),
        "recursion": sys.getrecursionlimit(),
    }
    return {name: str(value) for name, value in found.items()}


def _asked(option: int) -> int:
    value = ctypes.c_int()
    ctypes.CDLL(None).prctl(option, ctypes.byref(value), 0, 0, 0)
    return value.value


def _caught() -> str:
    """The signals that have a handler, as the kernel sees them, without the C library's own 32 and 33."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("SigCgt")]
    return f"{int(line.split()[1], 16) & ~(0b11 << 31):x}"


def _file_behind(number: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(number)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def write(cx: Context, number: int) -> Done[int]:
    """Write a file; a negative number lowers the file size limit permanently instead."""
    if number < 0:
        time.sleep(0.002)
        actions["a_limit_for_good"]()
        return To.done(os.getpid())
    with tempfile.NamedTemporaryFile(dir=os.environ["STAGE"]) as file:
        file.write(b"x")
        file.flush()
    return To.done(os.getpid())


def speak(cx: Context, text: str) -> Done:
    print(text)
    print(text, file=sys.stderr)
    return To.done()


class Made:
    """A state whose factory sets context variables."""

    def __init__(self) -> None:
        tenant.set("of the factory")
        decimal.getcontext().prec = 4


async def made_async() -> Made:
    return Made()


leaves = app.job("leaves").step(leave)
leaves_async = app.job("leaves-async").step(leave_async)
looks = app.job("looks").step(look)
looks_async = app.job("looks-async").step(look_async)
looks_with_state = app.job("looks-with-state", state=Made).step(look)
looks_with_async_state = app.job("looks-with-async-state", state=made_async).step(look)
writes = app.job("writes").step(write)
speaks = app.job("speaks").step(speak)
