"""The state of the process: each task finds it as it was when the worker had booted.

A step that ended in a work folder which it had then deleted made every later run of its worker fail for good. What is
cheap to put back is put back after each task; the rest is looked at after a task that failed, after each millisecond of
work, and before the worker waits. The page docs/isolation.md says what remains.
"""

import _signal  # type: ignore[import-not-found]  # signal without its enums: 0.5 instead of 4 microseconds a task
import contextlib
import faulthandler
import gc
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TextIO

_CHECK_SECONDS = 0.001
_STANDARD = (0, 1, 2)
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
# Not RLIMIT_OFILE, the old name of RLIMIT_NOFILE.
_LIMITS = [name for name in dir(resource) if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"]


class Kept(NamedTuple):
    """A part of the state. `deed` says in the log what a step has done to it."""

    deed: str
    is_intact: Callable[[], bool]
    put_back: Callable[[], object]


class Isolation:
    """Made when the app is imported. `signals` are the supervisor's, which are never blocked; `watch_faults` enables
    faulthandler again.
    """

    def __init__(self, signals: set[int], watch_faults: Callable[[], None]) -> None:
        self.spoilt = ""  # what cannot be put back: this process must run nothing more
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._folder = _working_folder()
        self._mask = tuple(signal.pthread_sigmask(signal.SIG_BLOCK, ()) - signals)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        # A timer that the app has started at import, as some profilers do, is left alone.
        self._timers = tuple(int(timer) for timer in _TIMERS if signal.getitimer(timer) == (0.0, 0.0))
        self._watch_faults = watch_faults
        self._wakeup = _signal.set_wakeup_fd(-1)
        _signal.set_wakeup_fd(self._wakeup)
        self._kept = tuple(_kept())
        self._unchecked = 0.0  # seconds of work since all of it was looked at

    def restore(self, seconds: float, *, failed: bool) -> None:
        """After each task, which took so long."""
        os.umask(self._umask)
        if self._folder is not None:
            try:
                os.fchdir(self._folder)
            except OSError as error:
                self.spoilt = f"a step left the working folder, to which the worker cannot return: {error}"
        _signal.pthread_sigmask(_signal.SIG_SETMASK, self._mask)
        self._unchecked += seconds
        if failed or self._unchecked > _CHECK_SECONDS:
            self.restore_all()

    def restore_all(self) -> None:
        """Also what takes longer to look at."""
        if not self._unchecked:
            return
        self._unchecked = 0.0
        for timer in self._timers:
            _signal.setitimer(timer, 0)
        faulthandler.cancel_dump_traceback_later()  # it may have been told to end the process
        self._watch_faults()
        # It may be a closed event loop's, and its number by now a file's, into which each signal would write a byte.
        with contextlib.suppress(OSError, ValueError):
            _signal.set_wakeup_fd(self._wakeup)
        for kept in self._kept:
            if not kept.is_intact():
                with contextlib.suppress(Exception):
                    kept.put_back()
                if not kept.is_intact():
                    self.spoilt = f"a step has {kept.deed}, which cannot be undone"


def _working_folder() -> int | None:
    """A descriptor of it: its name may come to mean another folder, or none."""
    try:
        return os.open(".", getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY)
    except OSError:
        return None


def _kept() -> Iterator[Kept]:
    yield from filter(None, map(_descriptor, _STANDARD))
    yield from map(_stream, ("stdin", "stdout", "stderr"))
    yield _handlers()
    # Before the limits: who is root again may raise them.
    if sys.platform == "linux":
        yield _as_now("changed its user or group", _ids, _set_ids)
    yield from map(_limit, _LIMITS)
    yield _as_now("set a trace function", sys.gettrace, sys.settrace)
    yield _as_now("set a profile function", sys.getprofile, sys.setprofile)
    yield _as_now("set a trace function for threads", threading.gettrace, threading.settrace)
    yield _as_now("set a profile function for threads", threading.getprofile, threading.setprofile)
    yield _as_now("switched the garbage collector", gc.isenabled, lambda on: gc.enable() if on else gc.disable())
    yield _recursion_limit()


def _as_now(deed: str, look: Callable[[], Any], put_back: Callable[[Any], object]) -> Kept:
    """What is compared with its value at boot."""
    at_boot = look()
    return Kept(deed, lambda: bool(look() == at_boot), lambda: put_back(at_boot))


def _ids() -> tuple[int, ...]:
    return *os.getresuid(), *os.getresgid()


def _set_ids(ids: tuple[int, ...]) -> None:
    os.setresuid(*ids[:3])  # first: who is root again may change the group
    os.setresgid(*ids[3:])


def _descriptor(number: int) -> Kept | None:
    """One of the standard three, which the step may have closed, or pointed elsewhere to silence a library."""
    try:
        duplicate = os.dup(number)
    except OSError:
        return None  # the app has closed it
    return _as_now(
        f"closed or redirected descriptor {number}",
        lambda: _file_behind(number),
        lambda _: os.dup2(duplicate, number),
    )


def _file_behind(number: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(number)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _stream(name: str) -> Kept:
    """sys.stdout and the like, which the step may have replaced or closed."""
    at_boot: TextIO | None = getattr(sys, name)

    def is_intact() -> bool:
        return getattr(sys, name) is at_boot and not (at_boot is not None and at_boot.closed)

    def put_back() -> None:
        nonlocal at_boot
        if at_boot is not None and at_boot.closed:
            number = ("stdin", "stdout", "stderr").index(name)
            at_boot = open(  # noqa: SIM115 - stays open as long as the worker lives
                number, "r" if number == 0 else "w", encoding="utf-8", errors="backslashreplace", closefd=False
            )
            at_boot.reconfigure(line_buffering=True, write_through=True)
        setattr(sys, name, at_boot)

    return Kept(f"closed or replaced sys.{name}", is_intact, put_back)


def _handlers() -> Kept:
    """Signal handlers, as far as Python knows them. (SIGCHLD left ignored took away all exit codes of later steps.)

    Those that a native library has installed past Python cannot be put back from here, and not be told from those that
    it needs.
    """
    numbers = [int(number) for number in signal.valid_signals() if _signal.getsignal(number) is not None]

    def look() -> list[Any]:
        return list(map(_signal.getsignal, numbers))

    def put_back(handlers: list[Any]) -> None:
        for number, handler in zip(numbers, handlers, strict=True):
            if _signal.getsignal(number) != handler:
                _signal.signal(number, handler)

    return _as_now("replaced signal handlers", look, put_back)


def _limit(name: str) -> Kept:
    """A limit of the kernel's that a step has lowered. One that it has raised hurts nobody, and remains."""
    number = getattr(resource, name)
    at_boot = resource.getrlimit(number)

    def is_intact() -> bool:
        now = resource.getrlimit(number)
        return now == at_boot or (_is_not_lower(now[0], at_boot[0]) and _is_not_lower(now[1], at_boot[1]))

    return Kept(f"lowered {name}", is_intact, lambda: resource.setrlimit(number, at_boot))


def _is_not_lower(now: int, then: int) -> bool:
    return now == then or now == resource.RLIM_INFINITY or (now > then and then != resource.RLIM_INFINITY)


def _recursion_limit() -> Kept:
    """A library that a step imports first may raise it for good: only a lower one is undone."""
    at_boot = sys.getrecursionlimit()
    return Kept(
        "lowered the recursion limit",
        lambda: sys.getrecursionlimit() >= at_boot,
        lambda: sys.setrecursionlimit(at_boot),
    )
