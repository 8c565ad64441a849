"""The worker's life: import the app, say hello, run tasks until the supervisor is gone."""

import os
import socket
import sys
import traceback
from collections import deque
from collections.abc import Iterable

from underway.app import Underway
from underway.definition.loading import load
from underway.errors import AppNotFound
from underway.wire import messages as wire
from underway.worker.channel import SupervisorChannel, SupervisorGone
from underway.worker.children import Children
from underway.worker.django import close_old_connections
from underway.worker.executor import Executor
from underway.worker.interrupts import SIGNALS, InterruptHandler, end_everything
from underway.worker.logging_setup import ForwardedLogs, LogForwarder
from underway.worker.oom_score import prefer_as_oom_victim
from underway.worker.orderly_exit import end_in_order
from underway.worker.process_state import ProcessState
from underway.worker.process_title import Title
from underway.worker.truncate import shorten

_DID_NOT_BOOT = 3
_HANDED_OVER = ("next", "done", "committed")
_LONGEST_TRACEBACK = 32 * 1024
# After a shorter task, zombies are reaped only if Python code has started a child; others wait until the worker is
# idle.
_SECONDS_OF_INTEREST = 0.01


def main() -> None:
    app_name, descriptor, supervisor, log_level, slot = sys.argv[1:]
    prefer_as_oom_victim()
    wire_end = socket.socket(fileno=int(descriptor))
    wire_end.set_inheritable(False)  # passed to us by exec; what the user's code starts must not have it
    conversation = SupervisorChannel(wire_end)
    guard = InterruptHandler(conversation, int(supervisor))
    children = Children()
    forwarder = LogForwarder(conversation, guard, int(log_level))
    logs = ForwardedLogs(forwarder)
    logs.begin_import()
    try:
        app = load(app_name)
        if not isinstance(app, Underway):
            raise AppNotFound(f"{app_name} is a {type(app).__name__}, not an Underway app")
        manifest = app.manifest().to_json()
        logs.end_import()
        executor = Executor(app.registry, conversation, guard, logs=logs)
        isolation = ProcessState(SIGNALS, guard.watch_faults)
    except BaseException:
        text = shorten(traceback.format_exc(), _LONGEST_TRACEBACK)
        conversation.send(wire.BootFailed(text.encode(errors="replace")))
        os._exit(_DID_NOT_BOOT)  # sys.exit would wait for the threads that the app has started, a minute at most
    conversation.send(wire.Hello(os.getpid(), manifest))
    try:
        Inbox(conversation, guard, executor, isolation, children, forwarder, Title(int(slot))).work()
        end_in_order(app)
    except SupervisorGone:
        end_everything()


class Inbox:
    """Tasks handed to this worker, run in order unless they are revoked."""

    def __init__(
        self,
        conversation: SupervisorChannel,
        guard: InterruptHandler,
        executor: Executor,
        isolation: ProcessState,
        children: Children,
        forwarder: LogForwarder,
        title: Title,
    ) -> None:
        self._conversation = conversation
        self._guard = guard
        self._executor = executor
        self._isolation = isolation
        self._forwarder = forwarder
        self._title = title
        self._children = children
        self._told_to_end = False
        self._tasks: deque[wire.Task] = deque()
        self._revoked: set[int] = set()
        self._asked = False  # whether it has asked to be replaced

    def work(self) -> None:
        """Run tasks until the supervisor tells the worker to exit."""
        announced: int | None = None
        while True:
            while not self._tasks or self._isolation.spoilt:
                self._rest()
                if self._told_to_end:
                    return
            task = self._tasks.popleft()
            # The result before and the start of this leave in one write. Then the inbox is read: whoever wrote a
            # Revoke before seeing our Started can rely on its being found here.
            self._conversation.send(None if task.token == announced else wire.Started(task.token))
            announced = None  # once: it may be skipped, and come again
            self._take(self._conversation.poll())
            if task.token in self._revoked:
                self._revoked.discard(task.token)
                self._conversation.hold(wire.Skipped(task.token))
                continue
            self._forwarder.token = task.token
            if self._tasks:
                self._title.busy()
            else:
                self._title.task(task)
            outcome = self._executor.execute(task)
            close_old_connections()
            self._isolation.restore(outcome[4], failed=outcome[0] not in _HANDED_OVER)
            if self._children.news or outcome[4] > _SECONDS_OF_INTEREST:
                self._children.collect()
            self._take(self._guard.inbox)
            self._guard.inbox.clear()
            announced = self._tasks[0].token if self._tasks and not self._isolation.spoilt else None
            self._conversation.hold(wire.Result(task.token, announced, *outcome))

    def _rest(self) -> None:
        """Wait for something to do."""
        self._revoked.clear()  # they came too late, for tasks that are done
        self._isolation.restore_all()
        if self._isolation.spoilt:
            self._refuse()
        self._conversation.send()  # the last result, if nothing follows it
        self._title.idle()
        self._children.collect()
        self._take(self._conversation.receive())
        close_old_connections()  # they may have reached CONN_MAX_AGE while the worker was idle

    def _refuse(self) -> None:
        """Ask to be replaced, and return all tasks in reverse order, because each goes to the head of the queue."""
        if not self._asked:
            self._asked = True
            self._conversation.hold(wire.Tainted(self._isolation.spoilt))
        while self._tasks:
            self._conversation.hold(wire.Skipped(self._tasks.pop().token))

    def _take(self, messages: Iterable[wire.Message]) -> None:
        for message in messages:
            match message:
                case wire.Welcome():
                    self._executor.transactions.welcome = message
                case wire.Task():
                    self._tasks.append(message)
                case wire.Revoke(token):
                    self._revoked.add(token)
                    for task in [task for task in self._tasks if task.token == token]:
                        self._tasks.remove(task)
                        self._revoked.discard(token)
                        self._conversation.hold(wire.Skipped(token))
                case wire.Stop():
                    pass  # for a task that has ended meanwhile
                case wire.End():
                    self._told_to_end = True
