"""Signals: the supervisor's request to stop a step, and the supervisor's end."""

import _signal  # type: ignore[import-not-found]  # signal without its enums: 0.5 instead of 4 microseconds a task
import _thread
import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import NoReturn, Protocol

from underway.errors import Interrupt
from underway.guardian.script import MARK, children_of, kill_below
from underway.wire import messages
from underway.wire.signals import STACK_SIGNAL, STOP_SIGNAL
from underway.worker.channel import SupervisorChannel, SupervisorGone

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_KEEPER_SECONDS = 1.0
_MOST_LOOKS = 10
# Read before the app can change the variable: a shorter mark would match other workers too.
_MARKS = [os.environ[MARK]] if os.environ.get(MARK) else []
_IMPORT_SECONDS = 0.05
# The signals that the supervisor sends; they are never blocked.
SIGNALS = {STOP_SIGNAL, STACK_SIGNAL} if STACK_SIGNAL else {STOP_SIGNAL}


class Interrupts(Protocol):
    """Whoever may interrupt a step, as those need it who run one."""

    @property
    def running(self) -> int | None: ...
    def begin(self, token: int) -> None: ...
    def end(self) -> None: ...
    def raise_postponed(self) -> None: ...
    def delivering(self, deliver: Callable[[str], None]) -> AbstractContextManager[None]: ...


class InterruptHandler:
    """SIGUSR1 means: look into the inbox. So a request that comes late, after its task, can never hit the next one."""

    def __init__(self, conversation: SupervisorChannel, supervisor: int) -> None:
        self._conversation = conversation
        self._running: int | None = None
        self._pending: str | None = None
        self._called_early = False
        self._will_call_again = False
        self._deliver: Callable[[str], None] = _raise_here
        self.inbox: list[messages.Message] = []
        signal.signal(STOP_SIGNAL, self._look)
        # Not SIG_IGN, which is inherited by exec: a step could not end its ffmpeg with a SIGINT.
        signal.signal(signal.SIGINT, lambda _number, _frame: None)
        self.stderr = os.dup(2)  # a step may redirect descriptor 2 to silence a native library
        self.watch_faults()
        _arrange_end(supervisor)

    def watch_faults(self) -> None:
        """Write the stacks on a fatal signal and on STACK_SIGNAL. Called again after tasks, which may change this."""
        faulthandler.enable(self.stderr)
        if STACK_SIGNAL:  # its handler is in C: one in Python would not run before a blocking call returns
            faulthandler.register(STACK_SIGNAL, self.stderr)

    @property
    def running(self) -> int | None:
        """The token of the attempt whose step runs now."""
        return self._running

    def begin(self, token: int) -> None:
        self._take_signal_back()
        self._running = token
        if self._called_early:
            self._called_early = False
            self._look(STOP_SIGNAL, None)

    def end(self) -> None:
        """From here on no interrupt is raised."""
        self._running = None
        self._pending = None

    def _take_signal_back(self) -> None:
        """A step before this one may have put another handler in our place."""
        if _signal.getsignal(STOP_SIGNAL) != self._look:
            signal.signal(STOP_SIGNAL, self._look)

    def _look(self, _number: int, _frame: FrameType | None) -> None:
        self._will_call_again = False
        # Outside a step the main loop reads the inbox itself, and may be in the middle of it.
        if self._running is None:
            self._called_early = True  # perhaps for the task whose input is just being decoded
            return
        try:
            for message in self._conversation.poll():
                if isinstance(message, messages.Stop):
                    if message.token == self._running:
                        self._pending = message.reason
                else:
                    self.inbox.append(message)
        except SupervisorGone:
            end_everything()
        if not self._conversation.sending:
            self.raise_postponed()

    def raise_postponed(self) -> None:
        """An interrupt in the middle of a frame would leave half of it on the wire; it comes right behind.

        In the middle of an import it would leave half of a package, with which this worker could never do anything.
        It is for the step, not for a thread of it that happens to log.
        """
        if (
            self._pending is not None
            and self._running is not None
            and threading.current_thread() is threading.main_thread()
        ):
            if _importing():
                self._call_again_soon()
                return
            reason, self._pending = self._pending, None
            self._deliver(reason)

    def _call_again_soon(self) -> None:
        if not self._will_call_again:
            with contextlib.suppress(RuntimeError):  # no thread is to be had; who logs asks again
                # threading's own takes locks, which we may have interrupted
                _thread.start_new_thread(_call_again, ())
                self._will_call_again = True

    @contextmanager
    def delivering(self, deliver: Callable[[str], None]) -> Iterator[None]:
        """Meanwhile an interrupt is not simply raised, but handed to `deliver`, which knows where it may be."""
        self._deliver = deliver
        try:
            yield
        finally:
            self._deliver = _raise_here


def _importing() -> bool:
    """Whether the main thread, which asks, runs a module for the first time."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _call_again() -> None:
    time.sleep(_IMPORT_SECONDS)
    os.kill(os.getpid(), STOP_SIGNAL)


def _raise_here(reason: str) -> None:
    raise Interrupt(reason)


def end_everything() -> NoReturn:
    """The supervisor is gone: do nothing more, and be killed by the guardian with everything below.

    It finds by their parent those of our children that hide from it otherwise, so we must not end before them. Only
    if the guardian is dead or stopped too does this worker do its work: a subreaper is the parent of hidden orphans.
    """
    time.sleep(_KEEPER_SECONDS)
    with contextlib.suppress(OSError):  # the system may have no file descriptors left
        for _ in range(_MOST_LOOKS):  # a thread of the step may keep starting processes
            if not kill_below(_MARKS, children_of(os.getpid())):
                break
    os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _arrange_end(supervisor: int) -> None:
    """Hear of the supervisor's death even while a step runs, and adopt the orphans of our own children.

    The signal for that is SIGUSR1 and not SIGKILL: a worker killed at the same moment as its supervisor would leave
    its children without a parent by which the guardian can find them.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1, 0, 0, 0)
    if os.getppid() != supervisor:
        sys.exit("the supervisor has gone already")
