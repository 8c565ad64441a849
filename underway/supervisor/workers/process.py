"""One worker as its supervisor sees it: its process, its messages and output, and the tasks that it was given."""

import asyncio
import contextlib
import os
import signal
import time
from dataclasses import dataclass
from logging import getLogger
from typing import Protocol

from underway.definition.manifest import Lane, Manifest, Step
from underway.guardian.script import children_listed
from underway.linux import is_exiting
from underway.supervisor.logs.output_quota import OUTPUT_LIMIT
from underway.supervisor.logs.worker_output import WorkerOutput
from underway.supervisor.tasks.task import Task
from underway.supervisor.tasks.verdict import Observation
from underway.supervisor.workers.channel import WorkerChannel
from underway.supervisor.workers.launch import launch
from underway.supervisor.workers.read_throttle import OUTPUT_MESSAGES, ReadThrottle
from underway.supervisor.workers.recycle import WorkerUsage
from underway.wire import frames
from underway.wire import messages as wire
from underway.wire.signals import STACK_SIGNAL

log = getLogger("underway.supervisor")

# More than a socket holds: a drain that reads this much has found all that was written before it began.
_MOST_BUFFERED = 512 * 1024
# Between the end of its socket and its death, if the worker exits by itself.
_ENDING_SECONDS = 0.05
# How long a worker may write its stacks, as evidence, before it is killed.
LAST_WORDS_SECONDS = 0.05
# How long a worker may take to exit after it was asked to.
END_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class KillReason:
    """The token of the task because of which a worker is killed, and what was seen of that task."""

    token: int
    seen: str


# The worker is killed for a reason that no task is to blame for.
NO_TASK = KillReason(0, "")


class WorkerListener(Protocol):
    """Receives what a worker process reports."""

    def received(self, worker: "WorkerProcess", message: wire.Message) -> None: ...
    def on_messages_processed(self) -> None: ...
    def died(self, worker: "WorkerProcess") -> None: ...


class ProcessKiller(Protocol):
    """Kills workers together with the processes that they have started."""

    def kill(self, worker: "WorkerProcess") -> None: ...
    def on_exit(self, worker: "WorkerProcess") -> None: ...


class WorkerProcess:
    """Started at construction, which raises OSError if the system cannot start another process."""

    def __init__(
        self,
        app: str,
        slot: int,
        mark: str,
        listener: WorkerListener,
        killer: ProcessKiller,
        *,
        pool_size: int,
        generation: int,
        usage: WorkerUsage,
        folder: str | None,
        output_limit: int = OUTPUT_LIMIT,
        temporary: str | None = None,
    ) -> None:
        self.slot = slot
        self.mark = mark
        self.generation = generation  # how often the app had been reloaded when this worker was started
        self.usage = usage
        self.due = ""  # why it is to be replaced, as soon as it is idle and a fresh one has booted
        self.paused = False  # and until then it gets no task
        self.started_at = time.monotonic()
        self.manifest: Manifest | None = None
        self.lanes: dict[Lane, Step] = {}
        self.tasks: dict[int, Task] = {}  # in the order handed out; the first is the one that runs
        self.revoked: set[int] = set()
        self.kill_reason: KillReason | None = None
        self.kill_message = ""  # for the log and the attempt: why we killed it
        self.killing = False  # it was stopped, and SIGKILL is on its way
        self.has_last_words = False  # whether it may write its stacks before it is stopped
        self.died_writing = False
        self.peak_rss = 0  # known at its death
        self.temporary = temporary  # its TMPDIR
        self._listener = listener
        self._killer = killer
        self._loop = asyncio.get_running_loop()
        self._throttle = ReadThrottle(pool_size)
        launched = launch(app, slot, mark, folder, temporary)
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

    @property
    def ready(self) -> bool:
        """It can be given a task."""
        return self.manifest is not None and self.alive and not self.killing and not self.paused

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    @property
    def current(self) -> Task | None:
        """The task that runs, as far as the worker has told."""
        for task in self.tasks.values():
            return task if task.started_at is not None else None
        return None

    @property
    def exit_code(self) -> int | None:
        """The signal that killed it as a negative number; None while it lives."""
        return self._process.returncode

    @property
    def terminated(self) -> bool:
        """Died of a TERM, which never comes from us."""
        return self.exit_code == -signal.SIGTERM

    @property
    def most_pipelined(self) -> int:
        """How many tasks it may be handed at once: one after the other if it is to be replaced between two of them."""
        return 1 if self.due else self.usage.tasks_left

    @property
    def death(self) -> str:
        """In words, behind "the worker": why we killed it, or how it ended by itself."""
        return f"was {self.kill_message}" if self.kill_message else f"died: {self.exit_text}"

    @property
    def exit_text(self) -> str:
        code = self.exit_code
        if code is None:
            return "alive"
        if code >= 0:
            return f"exit code {code}"
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
        return f"signal {-code}"

    def about(self, token: int | None = None) -> dict[str, object]:
        """The worker and one of its tasks, as context for a log line: by its token, or the one that is running."""
        task = self.current if token is None else self.tasks.get(token)
        return {"worker": self.slot, **(task.about if task is not None else {})}

    def has_children(self) -> bool:
        """Orphans of its children are its children, too."""
        return bool(children_listed(self.pid))

    # Messages

    def send(self, *messages: wire.Message) -> bool:
        """Returns whether the worker has all of it. The rest follows when the worker reads."""
        return self._channel.send(*messages)

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
            if self.alive:  # also if it has just exited
                self._loop.call_later(_ENDING_SECONDS, self._kill_mute)
        return size

    def _handle(self, message: wire.Message) -> None:
        if type(message) in OUTPUT_MESSAGES:
            self._throttle.words = True
            if type(message) is wire.Log:
                self.output.log_record(message)
                return
        self._listener.received(self, message)

    def drain(self) -> None:
        """Handle everything that the worker has written until now, but not what it keeps writing meanwhile."""
        left = _MOST_BUFFERED
        while left > 0 and (read := self._receive()):
            left -= read

    def _kill_mute(self) -> None:
        """The worker is alive and its end is closed: user code has closed the socket. It cannot report any more."""
        if not self.alive:
            return
        if is_exiting(self.pid):  # a gigabyte of memory files took longer to close than this wait
            self._loop.call_later(_ENDING_SECONDS, self._kill_mute)
        else:
            self.kill(f"killed: it had closed its socket to the supervisor, descriptor {self._their_socket}")

    # Dying

    def signal(self, number: int) -> None:
        if self.alive:  # after that the descriptor may be another worker's
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill_task(self, task: Task, seen: str, why: str = "", *, last_words: float = 0.0) -> bool:
        """Kill the worker because of this task, unless its result has come in the meantime, or it is being killed
        already: with much memory to give back it may take a while to die, and of the first reason.
        """
        self.drain()
        if self.killing or task.token not in self.tasks:
            return False
        self.kill_reason = KillReason(task.token, seen)
        self.kill(f"{seen}: {why}" if why else seen, last_words=last_words)
        return True

    def kill(self, words: str = "", *, last_words: float = 0.0) -> None:
        """SIGKILL the worker and everything below it; its death is reported later, like any other.

        It is stopped before it can take up its next task: at once, or after `last_words` seconds in which it may write
        the stacks of its threads as evidence.
        """
        if self.killing or not self.alive:
            return
        self.killing = True
        self.kill_message = words
        if last_words and STACK_SIGNAL:
            self.has_last_words = True
            self.signal(STACK_SIGNAL)
            self._loop.call_later(last_words, self._stop_and_kill)
        else:
            self._stop_and_kill()

    def is_writing_stacks(self, token: int) -> bool:
        """Whether it is being killed for this task and was given time to write its stacks.

        The stack signal may interrupt a blocking C call, so a result may still arrive. It is ignored: the verdict on
        the task stands and has been logged.
        """
        return self.has_last_words and self.kill_reason is not None and self.kill_reason.token == token

    def _stop_and_kill(self) -> None:
        if self.alive:
            self.signal(signal.SIGSTOP)
            self._killer.kill(self)

    def end(self) -> None:
        """Ask an idle worker to exit; kill it if it does not do so in time."""
        if self.alive and not self.killing:
            self.send(wire.End())
            self._loop.call_later(END_SECONDS, self.kill)

    def cut_off(self) -> None:
        """The guardian has killed the worker because the supervisor was stopped. The task is not to blame."""
        if self.kill_reason is None:
            task = self.current
            self.kill_reason = NO_TASK if task is None else KillReason(task.token, Observation.KILLED_LEASE)
            self.kill_message = f"{Observation.KILLED_LEASE}: the supervisor was stopped and could not renew it"

    def kill_between_tasks(self, *, last_words: float = 0.0) -> None:
        """For nothing that it runs: what it begins in this very moment is not charged."""
        self.kill_reason = self.kill_reason or NO_TASK
        self.kill(last_words=last_words)

    def reap(self) -> bool:
        """Hear how it ended, and its last words; False if it has not ended."""
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        if not pid:
            return False
        self._process.returncode = os.waitstatus_to_exitcode(status)
        # No less than our own: until its exec the child was in our memory, and the kernel counts that too.
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
        """When nothing is left of it."""
        self._listener.died(self)
        self._listener.on_messages_processed()
