"""Restores the state of the worker process, so that each task finds it as it was after the boot.

(A step changed into a temporary folder and deleted it; every later run in its worker failed for good.) State that is
cheap to restore is restored after each task. The rest is checked after a failed task, after each millisecond of work,
and before the worker becomes idle. docs/isolation.md lists what is not restored.
"""

import _signal  # type: ignore[import-not-found]  # signal without its enums: 0.5 instead of 4 microseconds a task
import contextlib
import faulthandler
import fcntl
import gc
import io
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple, TextIO, cast

from underway.linux import CHILD_SUBREAPER, PARENT_DEATH_SIGNAL

_CHECK_SECONDS = 0.001
_STANDARD = (0, 1, 2)
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
# Not RLIMIT_OFILE, the old name of RLIMIT_NOFILE.
_LIMITS = [name for name in dir(resource) if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"]


class Part(NamedTuple):
    """One restorable part of the process state. `change` says for the log what a step has done to it."""

    change: str
    is_intact: Callable[[], bool]
    restore: Callable[[], object]


class ProcessState:
    """Created just after the app's import, and restores the state of that moment.

    `signals` are the supervisor's signals, which are never blocked. `enable_faulthandler` enables faulthandler again.
    """

    def __init__(self, signals: set[int], enable_faulthandler: Callable[[], None]) -> None:
        self.taint = ""  # the change that cannot be undone, if there is one: this process must run no more tasks
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._folder = _working_folder()
        self._mask = tuple(signal.pthread_sigmask(signal.SIG_BLOCK, ()) - signals)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        # A timer that the app has started at import, as some profilers do, is left alone.
        self._timers = tuple(int(timer) for timer in _TIMERS if signal.getitimer(timer) == (0.0, 0.0))
        self._enable_faulthandler = enable_faulthandler
        self._wakeup_fd = _signal.set_wakeup_fd(-1)
        _signal.set_wakeup_fd(self._wakeup_fd)
        self._parts = tuple(_parts())
        self._unchecked = 0.0  # seconds of work since the last full check

    def restore(self, seconds: float, *, failed: bool) -> None:
        """Restore the cheap parts after a task that took `seconds`, and everything if a full check is due."""
        os.umask(self._umask)
        if self._folder is not None:
            try:
                os.fchdir(self._folder)
            except OSError as error:
                self.taint = f"a step left the working folder, and the worker cannot return to it: {error}"
        _signal.pthread_sigmask(_signal.SIG_SETMASK, self._mask)
        self._unchecked += seconds
        if failed or self._unchecked > _CHECK_SECONDS:
            self.restore_all()

    def restore_all(self) -> None:
        """Restore the parts that take longer to check, too."""
        if not self._unchecked:
            return
        self._unchecked = 0.0
        for timer in self._timers:
            _signal.setitimer(timer, 0)
        faulthandler.cancel_dump_traceback_later()  # it may be set to exit the process
        # It may belong to a closed event loop. If its number has been reused for a file, each signal writes a byte into
        # it.
        with contextlib.suppress(OSError, ValueError):
            _signal.set_wakeup_fd(self._wakeup_fd)
        for part in self._parts:
            if not _is_intact(part):
                with contextlib.suppress(Exception):
                    part.restore()
                if not _is_intact(part):
                    self.taint = f"a step has {part.change}, which cannot be undone"
        # After the signal handlers. It installs its own only if it is not enabled yet, and does not notice that another
        # handler has replaced them: the next segmentation fault left no traceback.
        faulthandler.disable()
        self._enable_faulthandler()


def _is_intact(part: Part) -> bool:
    try:
        return part.is_intact()
    except Exception:  # a detached stream raises whatever it is asked
        return False


def _working_folder() -> int | None:
    """A descriptor of the working folder, because its path may later lead to another folder or to none."""
    try:
        return os.open(".", getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY)
    except OSError:
        return None


def _parts() -> Iterator[Part]:
    yield from filter(None, map(_descriptor, _STANDARD))
    yield from map(_stream, ("stdin", "stdout", "stderr"))
    yield _signal_handlers()
    # Before the limits: a process that is root again may raise them.
    if sys.platform == "linux":
        yield _as_now("changed its user or groups", _ids, _set_ids)
        # After the user: the kernel clears the signal when the user changes. Without it, a step would go on after its
        # supervisor and the guardian were killed.
        yield _as_now("cleared its parent-death signal", PARENT_DEATH_SIGNAL.get, PARENT_DEATH_SIGNAL.set)
        yield _as_now("stopped adopting the orphans of its children", CHILD_SUBREAPER.get, CHILD_SUBREAPER.set)
    yield from map(_limit, _LIMITS)
    yield _as_now("set a trace function", sys.gettrace, sys.settrace)
    yield _as_now("set a profile function", sys.getprofile, sys.setprofile)
    yield _as_now("set a trace function for threads", threading.gettrace, threading.settrace)
    yield _as_now("set a profile function for threads", threading.getprofile, threading.setprofile)
    yield _as_now("toggled the garbage collector", gc.isenabled, lambda on: gc.enable() if on else gc.disable())
    yield _recursion_limit()


def _as_now(change: str, read: Callable[[], Any], restore: Callable[[Any], object]) -> Part:
    """A part that is intact if its value equals the value at boot."""
    at_boot = read()
    return Part(change, lambda: bool(read() == at_boot), lambda: restore(at_boot))


class _Ids(NamedTuple):
    user: tuple[int, int, int]
    group: tuple[int, int, int]
    groups: list[int]


def _ids() -> _Ids:
    return _Ids(os.getresuid(), os.getresgid(), os.getgroups())


def _set_ids(ids: _Ids) -> None:
    os.setresuid(*ids.user)  # first, because a process that is root again may change its groups
    os.setresgid(*ids.group)
    if os.getgroups() != ids.groups:
        os.setgroups(ids.groups)


def _descriptor(number: int) -> Part | None:
    """A standard descriptor and its flags.

    A step may have closed it, or redirected it to silence a library. Programs such as node make their output
    non-blocking, and the worker's with it: of the next step's output, lines were lost.
    """
    try:
        duplicate = os.dup(number)
    except OSError:
        return None  # the app has closed it
    at_boot = _opened(number)
    assert at_boot is not None

    def restore() -> None:
        os.dup2(duplicate, number, inheritable=not at_boot.descriptor_flags & fcntl.FD_CLOEXEC)
        fcntl.fcntl(number, fcntl.F_SETFL, at_boot.file_flags)

    return Part(f"closed or redirected descriptor {number}", lambda: _opened(number) == at_boot, restore)


class _Opened(NamedTuple):
    """What a descriptor stands for."""

    device: int
    inode: int
    file_flags: int
    descriptor_flags: int


def _opened(number: int) -> _Opened | None:
    try:
        status = os.fstat(number)
        flags = fcntl.fcntl(number, fcntl.F_GETFL), fcntl.fcntl(number, fcntl.F_GETFD)
    except OSError:
        return None
    return _Opened(status.st_dev, status.st_ino, *flags)


def _stream(name: str) -> Part:
    """A standard stream such as sys.stdout, which a step may have replaced, closed, detached or reconfigured."""
    at_boot: TextIO | None = getattr(sys, name)
    settings = _settings(at_boot)

    def is_intact() -> bool:
        return getattr(sys, name) is at_boot and _settings(at_boot) == settings

    def restore() -> None:
        nonlocal at_boot
        if settings is not None and _settings(at_boot) is None:
            at_boot = io.TextIOWrapper(_binary_stream(("stdin", "stdout", "stderr").index(name)), **settings)
        elif settings is not None and isinstance(at_boot, io.TextIOWrapper):
            at_boot.reconfigure(**settings)
        setattr(sys, name, at_boot)

    return Part(f"closed, replaced or reconfigured sys.{name}", is_intact, restore)


def _binary_stream(number: int) -> BinaryIO:
    """Unbuffered output, as PYTHONUNBUFFERED has made the original: a line must not wait in a buffer."""
    if number == 0:
        return open(number, "rb", closefd=False)
    return cast(BinaryIO, open(number, "wb", buffering=0, closefd=False))


def _settings(stream: TextIO | None) -> dict[str, Any] | None:
    """None for a stream that is closed, or detached from its file."""
    try:
        if stream is None or stream.closed:
            return None
    except ValueError:
        return None
    return {name: getattr(stream, name, None) for name in ("encoding", "errors", "line_buffering", "write_through")}


def _signal_handlers() -> Part:
    """The signal handlers that Python knows. (With SIGCHLD left ignored, later steps could not get any exit code.)

    Handlers that a native library has installed without Python cannot be restored, nor told from handlers that the
    library needs.
    """
    numbers = [int(number) for number in signal.valid_signals() if _signal.getsignal(number) is not None]

    def read() -> list[Any]:
        return list(map(_signal.getsignal, numbers))

    def restore(handlers: list[Any]) -> None:
        for number, handler in zip(numbers, handlers, strict=True):
            if _signal.getsignal(number) != handler:
                _signal.signal(number, handler)

    return _as_now("replaced signal handlers", read, restore)


def _limit(name: str) -> Part:
    """A resource limit, restored if a step has lowered it. A raised limit is harmless and stays."""
    number = getattr(resource, name)
    at_boot = resource.getrlimit(number)

    def is_intact() -> bool:
        now = resource.getrlimit(number)
        return now == at_boot or (_is_not_lower(now[0], at_boot[0]) and _is_not_lower(now[1], at_boot[1]))

    return Part(f"lowered {name}", is_intact, lambda: resource.setrlimit(number, at_boot))


def _is_not_lower(now: int, before: int) -> bool:
    return now == before or now == resource.RLIM_INFINITY or (now > before and before != resource.RLIM_INFINITY)


def _recursion_limit() -> Part:
    """The recursion limit, restored only if it was lowered: a library may raise it at import and rely on that."""
    at_boot = sys.getrecursionlimit()
    return Part(
        "lowered the recursion limit",
        lambda: sys.getrecursionlimit() >= at_boot,
        lambda: sys.setrecursionlimit(at_boot),
    )
