"""Interrupts: the supervisor's requests to stop a step, and the end of the supervisor."""

import _signal  # type: ignore[import-not-found]  # signal without its enums: 0.5 instead of 4 microseconds a task
import _thread
import contextlib
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
from underway.linux import become_subreaper, request_parent_death_signal
from underway.wire.messages import Message, Stop
from underway.wire.signals import STACK_SIGNAL, STOP_SIGNAL
from underway.worker.channel import SupervisorChannel, SupervisorGone

# Never blocked in a worker.
SUPERVISOR_SIGNALS = {STOP_SIGNAL, STACK_SIGNAL} if STACK_SIGNAL else {STOP_SIGNAL}
_IMPORT_SECONDS = 0.05
_GUARDIAN_SECONDS = 1.0
_MOST_SEARCHES = 10
# Read before the app can change the variable: a shorter mark would match other workers too.
_MARKS = [os.environ[MARK]] if os.environ.get(MARK) else []


class Interrupts(Protocol):
    """What the code that runs a step needs of an InterruptHandler."""

    @property
    def running(self) -> int | None: ...
    def enable(self, token: int) -> None: ...
    def disable(self) -> None: ...
    def raise_pending(self) -> None: ...
    def delivered_by(self, deliver: Callable[[str], None]) -> AbstractContextManager[None]: ...


class InterruptHandler:
    """Raises an Interrupt in the running step when the supervisor asks for it.

    The request is a Stop, which names the task; STOP_SIGNAL only says that a message has arrived. So a request that
    arrives after its task has ended cannot interrupt the next task.
    """

    def __init__(self, channel: SupervisorChannel, supervisor_pid: int) -> None:
        self._channel = channel
        self._running: int | None = None
        self._pending: str | None = None  # the reason of an interrupt that cannot be raised yet
        self._signalled_early = False
        self._retry_scheduled = False
        self._deliver: Callable[[str], None] = _raise_interrupt
        self.received: list[Message] = []  # other messages that were read while looking for a Stop
        signal.signal(STOP_SIGNAL, self._on_signal)
        # Not SIG_IGN, which is inherited by exec: a step could not stop its ffmpeg with a SIGINT.
        signal.signal(signal.SIGINT, lambda _number, _frame: None)
        self.stderr = os.dup(2)  # a step may redirect descriptor 2 to silence a native library
        self.enable_faulthandler()
        _outlive_supervisor(supervisor_pid)

    def enable_faulthandler(self) -> None:
        """Write the stacks on a fatal signal and on STACK_SIGNAL. Called again after tasks, which may change this."""
        faulthandler.enable(self.stderr)
        if STACK_SIGNAL:  # this handler is in C: a handler in Python does not run while a call blocks
            faulthandler.register(STACK_SIGNAL, self.stderr)

    @property
    def running(self) -> int | None:
        """The token of the attempt whose step runs now."""
        return self._running

    def enable(self, token: int) -> None:
        """From now on, interrupts for this attempt are raised."""
        self._restore_handler()
        self._running = token
        if self._signalled_early:
            self._signalled_early = False
            self._on_signal(STOP_SIGNAL, None)

    def disable(self) -> None:
        """From now on, no interrupt is raised."""
        self._running = None
        self._pending = None

    def _restore_handler(self) -> None:
        """An earlier step may have replaced our handler."""
        if _signal.getsignal(STOP_SIGNAL) != self._on_signal:
            signal.signal(STOP_SIGNAL, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._retry_scheduled = False
        # Outside a step the task loop reads the messages itself, and this signal may have interrupted its reading.
        if self._running is None:
            self._signalled_early = True  # it may concern the task whose input is being decoded
            return
        try:
            for message in self._channel.poll():
                if not isinstance(message, Stop):
                    self.received.append(message)
                elif message.token == self._running:
                    self._pending = message.reason
        except SupervisorGone:
            await_guardian()
        if not self._channel.main_thread_sends:
            self.raise_pending()

    def raise_pending(self) -> None:
        """Raise the interrupt that has arrived, unless this is not the moment.

        Within a frame that is being sent it would leave half a frame on the socket; it is raised just after. Within an
        import it would leave half a package, with which no later task could run; it is tried again. A thread of the
        step that happens to log is not interrupted.
        """
        in_step = self._pending is not None and self._running is not None
        if not in_step or threading.current_thread() is not threading.main_thread():
            return
        if _importing():
            self._schedule_retry()
            return
        reason, self._pending = self._pending, None
        assert reason is not None
        self._deliver(reason)

    def _schedule_retry(self) -> None:
        if not self._retry_scheduled:
            with contextlib.suppress(RuntimeError):  # no thread can be started; the next log record tries again
                # Not threading.Thread, which takes locks that the signal may have interrupted.
                _thread.start_new_thread(_signal_later, ())
                self._retry_scheduled = True

    @contextmanager
    def delivered_by(self, deliver: Callable[[str], None]) -> Iterator[None]:
        """In this block an interrupt is not raised, but passed to `deliver`, which decides where it is raised."""
        self._deliver = deliver
        try:
            yield
        finally:
            self._deliver = _raise_interrupt


def _importing() -> bool:
    """Whether the calling thread is running a module for the first time."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _signal_later() -> None:
    time.sleep(_IMPORT_SECONDS)
    os.kill(os.getpid(), STOP_SIGNAL)


def _raise_interrupt(reason: str) -> None:
    raise Interrupt(reason)


def _outlive_supervisor(supervisor_pid: int) -> None:
    """Notice the supervisor's death even while a step runs, and adopt the orphans of this worker's children.

    The death signal is STOP_SIGNAL and not SIGKILL: a worker that is killed at the same moment as its supervisor would
    leave its children without the parent by which the guardian finds them.
    """
    become_subreaper()
    request_parent_death_signal(STOP_SIGNAL)
    if os.getppid() != supervisor_pid:
        sys.exit("the supervisor has gone already")


def await_guardian() -> NoReturn:
    """The supervisor is gone: do nothing more, and wait for the guardian to kill this process and everything below.

    This worker must not exit before: the guardian finds children that hide from it only by their parent. If the
    guardian is dead or stopped too, this worker does its work, because as a subreaper it is the parent of hidden
    orphans.
    """
    time.sleep(_GUARDIAN_SECONDS)
    with contextlib.suppress(OSError):  # the system may have no file descriptors left
        for _ in range(_MOST_SEARCHES):  # a thread of the step may keep starting processes
            if not kill_below(_MARKS, children_of(os.getpid())):
                break
    os.killpg(0, signal.SIGKILL)
    os._exit(1)
