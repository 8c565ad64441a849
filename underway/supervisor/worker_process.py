"""One worker as its supervisor sees it: a process, a socket, a pipe with its output, and the tasks it was given."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from logging import getLogger
from typing import Protocol

from underway import wire
from underway.keeper import MARK, children_listed
from underway.manifest import Lane, Manifest, Step
from underway.supervisor.allowance import OUTPUT_LIMIT
from underway.supervisor.attention import WORDS, Attention
from underway.supervisor.recycling import Wear
from underway.supervisor.task import Task
from underway.supervisor.verdict import Seen
from underway.supervisor.worker_output import WorkerOutput

log = getLogger("underway.supervisor")
worker_log = getLogger("underway.worker")

# Read into, again and again: a buffer of its own for each read would be mapped and unmapped each time.
_inbox = memoryview(bytearray(64 * 1024))
# More than a socket holds: what was written before a drain began is found within so many bytes.
_MOST_BUFFERED = 512 * 1024
# Between the end of what it says and its own, if it ends by itself.
_ENDING_SECONDS = 0.05
_PF_EXITING = 0x4  # in the flags of /proc/PID/stat; see include/linux/sched.h
# How long a worker may write its stacks, as evidence, before it is killed.
LAST_WORDS_SECONDS = 0.05
# How long a worker may take to exit after it was asked to.
END_SECONDS = 5.0
# A kill_reason that is nothing a task has done.
NO_TASK = (0, "")
# Blanks in a worker's command line, which it overwrites with what it does: `ps` shows that (worker/title.py).
_ROOM_FOR_TITLE = 160


class Overseer(Protocol):
    """Whoever a worker process reports to."""

    def received(self, worker: "WorkerProcess", message: wire.Message) -> None: ...
    def settled(self) -> None: ...
    def died(self, worker: "WorkerProcess") -> None: ...


class Hunter(Protocol):
    """Kills what hangs below workers."""

    def kill(self, worker: "WorkerProcess") -> None: ...
    def bury(self, worker: "WorkerProcess") -> None: ...


class WorkerProcess:
    """Started at construction, which raises OSError if the system has no process to give.

    All I/O is non-blocking: a worker that does not read cannot hold up its supervisor.
    """

    def __init__(
        self,
        app: str,
        slot: int,
        mark: str,
        overseer: Overseer,
        hunter: Hunter,
        *,
        crew_size: int,
        generation: int,
        wear: Wear,
        folder: str | None,
        output_limit: int = OUTPUT_LIMIT,
        temporary: str | None = None,
    ) -> None:
        self.slot = slot
        self.mark = mark
        self.generation = generation  # how often the app had been reloaded when this worker was started
        self.wear = wear
        self.due = ""  # why it is to be replaced, as soon as it is idle and a fresh one has booted
        self.resting = False  # and until then it gets no task
        self.started_at = time.monotonic()
        self.manifest: Manifest | None = None
        self.lanes: dict[Lane, Step] = {}
        self.tasks: dict[int, Task] = {}  # in the order handed out; the first is the one that runs
        self.revoked: set[int] = set()
        self.kill_reason: tuple[int, str] | None = None  # the token that was to be killed, and what was seen of it
        self.kill_words = ""  # what people are told of why we killed it
        self.doomed = False  # we have killed it, and it stands still
        self.has_last_words = False  # whether it may write its stacks before it is stopped
        self.died_writing = False
        self.peak_rss = 0  # known at its death
        self.temporary = temporary  # its TMPDIR
        self._overseer = overseer
        self._hunter = hunter
        self._loop = asyncio.get_running_loop()
        self._reader = wire.FrameReader()
        self._unsent = bytearray()
        self._attention = Attention(crew_size)
        self._hung_up = False  # it has closed its end, or what it sent is no message
        self._clogged = False  # the worker has not taken all we have sent
        self._socket, theirs = socket.socketpair()
        self._their_number = theirs.fileno()  # in the worker too
        self._socket.setblocking(False)
        self._pipe, their_output = os.pipe()
        os.set_blocking(self._pipe, False)
        # -P: a types.py beside the app must not be taken for the standard library's while we are still importing that.
        # exec, never fork: the child has none of our memory, locks or descriptors. Its own session keeps Ctrl-C and
        # a TERM for our whole group away from it.
        command = [sys.executable, "-P", "-m", "underway.worker", app, str(theirs.fileno()), str(os.getpid())]
        # The worker need not send records that the supervisor would not log.
        command += [str(worker_log.getEffectiveLevel()), str(slot).ljust(_ROOM_FOR_TITLE)]
        try:
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=their_output,
                stderr=their_output,
                start_new_session=True,
                cwd=folder,
                env=_environment(mark, temporary),
            )
            self._pidfd = _watchable(self._process)
        except OSError:
            self._socket.close()
            os.close(self._pipe)
            raise
        finally:
            theirs.close()
            os.close(their_output)
        self.output = WorkerOutput(self._pipe, self, output_limit)
        self._loop.add_reader(self._pidfd, hunter.bury, self)
        self._loop.add_reader(self._socket, self._on_readable)
        self._loop.add_reader(self._pipe, self._on_output)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ready(self) -> bool:
        """It can be given a task."""
        return self.manifest is not None and self.alive and not self.doomed and not self.resting

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
    def most_handed(self) -> int:
        """How many tasks it may be handed at once: one after the other if it is to be replaced between two of them."""
        return 1 if self.due else self.wear.tasks_left

    @property
    def death(self) -> str:
        """In words, behind "the worker": why we killed it, or how it ended by itself."""
        return f"was {self.kill_words}" if self.kill_words else f"died: {self.exit_text}"

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

    def has_children(self) -> bool:
        """Orphans of its children are its children, too."""
        return bool(children_listed(self.pid))

    # Talking

    def send(self, *messages: wire.Message) -> bool:
        """Whether all of it is in the worker's hands now; the rest follows when the worker reads."""
        self._unsent += b"".join(wire.encode(message) for message in messages)
        return self._flush()

    def _flush(self) -> bool:
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            self._clogged = True
            self._loop.add_writer(self._socket, self._flush)
            return False
        except OSError:
            self._unsent.clear()  # it is dying; its pidfd will say so
        if self._clogged:
            self._clogged = False
            self._loop.remove_writer(self._socket)
        return not self._unsent

    def _on_readable(self) -> None:
        self._attention.begin()
        self._receive()
        self._listened()

    def _on_output(self) -> None:
        """First hear of which task it is, if that is news."""
        self._attention.begin()
        self._receive()
        if self.output.read():
            self._attention.words = True
        self._listened()

    def _listened(self) -> None:
        self._overseer.settled()
        if pause := self._attention.pause(len(self.tasks)):
            self._loop.remove_reader(self._socket)
            self._loop.remove_reader(self._pipe)
            self._loop.call_later(pause, self._hear_again)

    def _hear_again(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.add_reader(self._pipe, self._on_output)
            if not self._hung_up:
                self._loop.add_reader(self._socket, self._on_readable)
                self._on_readable()

    def _receive(self) -> int:
        """Read once and hand on what came; the number of bytes, 0 when there was nothing to read."""
        if self._hung_up:
            return 0
        try:
            size = self._socket.recv_into(_inbox)
        except BlockingIOError:
            return 0
        except OSError:
            size = 0
        if not size:
            self._hang_up()
            self.died_writing = self._reader.incomplete
            if self.alive:  # as it is still when it has just ended
                self._loop.call_later(_ENDING_SECONDS, self._end_mute)
            return 0
        self.output.behind = True
        try:
            for message in self._reader.feed(_inbox[:size]):
                if type(message) in WORDS:
                    self._attention.words = True
                if type(message) is wire.Log:
                    self.output.log_record(message)
                else:
                    self._overseer.received(self, message)
        except wire.BrokenFrame as error:
            self._hang_up()
            self.kill(
                f"killed: what came from it is no message ({error}); "
                f"code in a step must not write to descriptor {self._their_number}"
            )
            return 0
        return size

    def _hang_up(self) -> None:
        self._hung_up = True
        self._loop.remove_reader(self._socket)

    def drain(self) -> None:
        """Hand on everything the worker has written until now, and no end of what it goes on writing meanwhile."""
        left = _MOST_BUFFERED
        while left > 0 and (read := self._receive()):
            left -= read

    def _end_mute(self) -> None:
        """Still alive with its end closed: the user's code has closed our socket. It can tell us nothing any more."""
        if not self.alive:
            return
        if _is_exiting(self.pid):  # a gigabyte of memory files took longer to close than this wait
            self._loop.call_later(_ENDING_SECONDS, self._end_mute)
        else:
            self.kill(f"killed: it had closed its socket to the supervisor, descriptor {self._their_number}")

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
        if self.doomed or task.token not in self.tasks:
            return False
        self.kill_reason = (task.token, seen)
        self.kill(f"{seen}: {why}" if why else seen, last_words=last_words)
        return True

    def kill(self, words: str = "", *, last_words: float = 0.0) -> None:
        """SIGKILL the worker and everything below it; its death is reported later, like any other.

        It is stopped before it can take up its next task: at once, or after `last_words` seconds in which it may write
        the stacks of its threads as evidence.
        """
        if self.doomed or not self.alive:
            return
        self.doomed = True
        self.kill_words = words
        if last_words and wire.STACK_SIGNAL:
            self.has_last_words = True
            self.signal(wire.STACK_SIGNAL)
            self._loop.call_later(last_words, self._strike)
        else:
            self._strike()

    def speaks_its_last(self, token: int) -> bool:
        """Whether it is being killed for this task and was given time to write its stacks.

        The stack signal may interrupt a blocking C call, so a result may still arrive. It is ignored: the verdict on
        the task stands and has been logged.
        """
        return self.has_last_words and self.kill_reason is not None and self.kill_reason[0] == token

    def _strike(self) -> None:
        if self.alive:
            self.signal(signal.SIGSTOP)
            self._hunter.kill(self)

    def end(self) -> None:
        """Ask an idle worker to exit; kill it if it does not do so in time."""
        if self.alive and not self.doomed:
            self.send(wire.End())
            self._loop.call_later(END_SECONDS, self.kill)

    def cut_off(self) -> None:
        """The keeper has killed the worker because the supervisor was stopped. The task is not to blame."""
        if self.kill_reason is None:
            task = self.current
            self.kill_reason = NO_TASK if task is None else (task.token, Seen.KILLED_LEASE)
            self.kill_words = f"{Seen.KILLED_LEASE}: the supervisor was stopped and could not renew it"

    def kill_between_tasks(self, *, last_words: float = 0.0) -> None:
        """For nothing that it runs: what it begins in this very moment is not charged."""
        self.kill_reason = self.kill_reason or NO_TASK
        self.kill(last_words=last_words)

    def collect(self) -> bool:
        """Hear how it ended, and its last words; False if it has not ended."""
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        if not pid:
            return False
        self._process.returncode = os.waitstatus_to_exitcode(status)
        # No less than our own: until its exec the child was in our memory, and the kernel counts that too.
        self.peak_rss = usage.ru_maxrss * 1024
        self._loop.remove_reader(self._pidfd)
        self.drain()
        self.died_writing = self.died_writing or self._reader.incomplete
        self.output.read_rest()
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        os.close(self._pidfd)
        return True

    def report_death(self) -> None:
        """When nothing is left of it."""
        self._overseer.died(self)
        self._overseer.settled()


def _environment(mark: str, temporary: str | None) -> dict[str, str]:
    environment = {**os.environ, MARK: mark, "PYTHONUNBUFFERED": "1"}
    return environment if temporary is None else {**environment, "TMPDIR": temporary}


def _watchable(process: "subprocess.Popen[bytes]") -> int:
    """A descriptor that tells of its death. Without one it does not stay: nobody would ever hear of its end."""
    try:
        return os.pidfd_open(process.pid)
    except OSError:
        process.kill()
        process.wait()
        raise


def _is_exiting(pid: int) -> bool:
    """Whether the kernel is already cleaning up after the process: then its exit code or signal is decided."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            flags = file.read().rpartition(b")")[2].split(maxsplit=7)[6]
    except (OSError, IndexError):
        return False
    return bool(int(flags) & _PF_EXITING)
