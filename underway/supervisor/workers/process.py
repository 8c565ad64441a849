"""The process of one worker: its messages and output, its signals, and its death."""

import asyncio
import contextlib
import os
import signal
from logging import getLogger
from typing import Protocol

from underway.guardian.script import children_listed
from underway.linux import is_exiting
from underway.supervisor.logs.output_quota import OUTPUT_LIMIT
from underway.supervisor.logs.worker_output import WorkerOutput
from underway.supervisor.tasks.task import Task
from underway.supervisor.tasks.verdict import Observation
from underway.supervisor.workers.channel import WorkerChannel
from underway.supervisor.workers.launch import LaunchSpec, launch
from underway.supervisor.workers.read_throttle import OUTPUT_MESSAGES, ReadThrottle
from underway.supervisor.workers.recycle import WorkerUsage
from underway.supervisor.workers.worker_state import NO_TASK, KillReason, WorkerState
from underway.wire import frames
from underway.wire import messages as wire
from underway.wire.signals import STACK_SIGNAL

log = getLogger("underway.supervisor")

# More than a socket holds: after this much, a drain has read all that was written before it began.
_MOST_BUFFERED = 512 * 1024
# Between the end of its socket and its death, if the worker exits by itself.
_ENDING_SECONDS = 0.05
# How long a worker may write its stacks, as evidence, before it is killed.
LAST_WORDS_SECONDS = 0.05
# How long a worker may take to exit after it was asked to.
END_SECONDS = 5.0


class WorkerListener(Protocol):
    """Receives what a worker process reports."""

    def received(self, worker: "WorkerProcess", message: wire.Message) -> None: ...
    def on_messages_processed(self) -> None: ...
    def died(self, worker: "WorkerProcess") -> None: ...


class ProcessKiller(Protocol):
    """Kills workers together with the processes that they have started."""

    def kill(self, worker: "WorkerProcess") -> None: ...
    def on_exit(self, worker: "WorkerProcess") -> None: ...


class WorkerProcess(WorkerState):
    """Started at construction, which raises OSError if the system cannot start another process."""

    def __init__(
        self,
        spec: LaunchSpec,
        generation: int,
        usage: WorkerUsage,
        listener: WorkerListener,
        killer: ProcessKiller,
        *,
        pool_size: int,
        output_limit: int = OUTPUT_LIMIT,
    ) -> None:
        super().__init__(spec.slot, generation, usage)
        self.mark = spec.mark
        self.temporary = spec.temporary
        self._listener = listener
        self._killer = killer
        self._throttle = ReadThrottle(pool_size)
        self._loop = asyncio.get_running_loop()
        launched = launch(spec)
        self._process, self._pidfd, self._pipe = launched.process, launched.pidfd, launched.output
        self._their_socket = launched.their_socket
        self._channel = WorkerChannel(launched.socket)
        self.output = WorkerOutput(self._pipe, self.about, output_limit)
        self._loop.add_reader(self._pidfd, killer.on_exit, self)
        self._channel.watch(self._on_readable)
        self._loop.add_reader(self._pipe, self._on_output)

    @property
    def pid(self) -> int:
        return self._process.pid

    def has_children(self) -> bool:
        """Whether it has child processes; those whose parent has died become its own."""
        return bool(children_listed(self.pid))

    # Messages

    def send(self, *messages: wire.Message) -> bool:
        """Returns whether the worker has all of it. The rest follows when the worker reads."""
        return self._channel.send(*messages)

    def drain(self) -> None:
        """Handle everything that the worker has written until now, but not what it keeps writing meanwhile."""
        left = _MOST_BUFFERED
        while left > 0 and (read := self._receive()):
            left -= read

    def _on_readable(self) -> None:
        self._throttle.begin()
        self._receive()
        self._processed()

    def _on_output(self) -> None:
        """Read the messages first: they may say which task the output belongs to."""
        self._throttle.begin()
        self._receive()
        if self.output.read():
            self._throttle.words = True
        self._processed()

    def _processed(self) -> None:
        self._listener.on_messages_processed()
        if pause := self._throttle.pause(len(self.tasks)):
            self._channel.unwatch()
            self._loop.remove_reader(self._pipe)
            self._loop.call_later(pause, self._resume_reading)

    def _resume_reading(self) -> None:
        if self._pidfd >= 0:
            self._loop.add_reader(self._pipe, self._on_output)
            if not self._channel.hung_up:
                self._channel.watch(self._on_readable)
                self._on_readable()

    def _receive(self) -> int:
        """Read once and handle the messages. Returns the number of bytes, 0 if there was nothing to read."""
        if self._channel.hung_up:
            return 0
        self.output.behind = True
        try:
            size = self._channel.receive(self._handle)
        except frames.BrokenFrame as error:
            self.kill(
                f"killed: it sent bytes that are not a message ({error}); "
                f"code in a step must not write to descriptor {self._their_socket}"
            )
            return 0
        if self._channel.hung_up:
            self.died_writing = self._channel.incomplete
            if self.alive:  # or it has exited, and was not reaped yet
                self._loop.call_later(_ENDING_SECONDS, self._kill_disconnected)
        return size

    def _handle(self, message: wire.Message) -> None:
        if type(message) in OUTPUT_MESSAGES:
            self._throttle.words = True
            if type(message) is wire.Log:
                self.output.log_record(message)
                return
        self._listener.received(self, message)

    def _kill_disconnected(self) -> None:
        """Kill a worker that lives on although its end of the socket is closed: user code has closed it."""
        if not self.alive:
            return
        if is_exiting(self.pid):  # a gigabyte of memory files took longer to close than this wait
            self._loop.call_later(_ENDING_SECONDS, self._kill_disconnected)
        else:
            self.kill(f"killed: it had closed its socket to the supervisor, descriptor {self._their_socket}")

    # Signals

    def signal(self, number: int) -> None:
        if self.alive:  # a dead worker's descriptor may have been reused
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def end(self) -> None:
        """Ask an idle worker to exit; kill it if it does not do so in time."""
        if self.alive and not self.killing:
            self.send(wire.End())
            self._loop.call_later(END_SECONDS, self.kill)

    def kill_task(self, task: Task, seen: str, why: str = "", *, last_words: float = 0.0) -> bool:
        """Kill the worker because of this task. Returns False, and does nothing, if the task has ended in the meantime.

        So does it for a worker that is being killed already. With much memory to free, a worker may take long to die;
        the first reason stands.
        """
        self.drain()
        if self.killing or task.token not in self.tasks:
            return False
        self.kill_reason = KillReason(task.token, seen)
        self.kill(f"{seen}: {why}" if why else seen, last_words=last_words)
        return True

    def kill_between_tasks(self, *, last_words: float = 0.0) -> None:
        """Kill a worker that runs no task. A task that it starts at this very moment is not charged."""
        self.kill_reason = self.kill_reason or NO_TASK
        self.kill(last_words=last_words)

    def kill(self, message: str = "", *, last_words: float = 0.0) -> None:
        """SIGKILL the worker and everything below it. Its death is reported later, like any other.

        It is stopped before it can start its next task: at once, or after `last_words` seconds in which it may write
        the stacks of its threads as evidence.
        """
        if self.killing or not self.alive:
            return
        self.killing = True
        self.kill_message = message
        if last_words and STACK_SIGNAL:
            self.has_last_words = True
            self.signal(STACK_SIGNAL)
            self._loop.call_later(last_words, self._stop_and_kill)
        else:
            self._stop_and_kill()

    def _stop_and_kill(self) -> None:
        if self.alive:
            self.signal(signal.SIGSTOP)
            self._killer.kill(self)

    # Death

    def cut_off(self) -> None:
        """Record that the guardian has killed the worker because the supervisor was stopped. No task is to blame."""
        if self.kill_reason is None:
            task = self.current
            self.kill_reason = NO_TASK if task is None else KillReason(task.token, Observation.KILLED_LEASE)
            self.kill_message = f"{Observation.KILLED_LEASE}: the supervisor was stopped and could not renew it"

    def reap(self) -> bool:
        """Collect the exit status and the last messages. Returns False if the process has not ended."""
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        if not pid:
            return False
        self.exit_code = self._process.returncode = os.waitstatus_to_exitcode(status)
        # Never less than the supervisor's own: until its exec the child shares our memory, and the kernel counts that.
        self.peak_rss = usage.ru_maxrss * 1024
        self._loop.remove_reader(self._pidfd)
        self.drain()
        self.died_writing = self.died_writing or self._channel.incomplete
        self.output.read_rest()
        self._channel.close()
        os.close(self._pidfd)
        self._pidfd = -1
        return True

    def report_death(self) -> None:
        """Called when all that the worker had started is dead too."""
        self._listener.died(self)
        self._listener.on_messages_processed()
