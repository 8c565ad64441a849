"""Runs the tasks of a worker one after the other, and restores the process after each."""

from underway.wire.messages import Assignment, Started, Tainted
from underway.worker.channel import SupervisorChannel
from underway.worker.children import Children
from underway.worker.django import close_old_connections
from underway.worker.executor import Executor
from underway.worker.inbox import Inbox
from underway.worker.interrupts import InterruptHandler
from underway.worker.logging_setup import LogForwarder
from underway.worker.outcome import Outcome
from underway.worker.process_state import ProcessState
from underway.worker.process_title import ProcessTitle

# Zombies are reaped after a task that took longer or started a child from Python, and when the worker becomes idle.
_REAP_SECONDS = 0.01


class TaskLoop:
    def __init__(
        self,
        channel: SupervisorChannel,
        interrupts: InterruptHandler,
        executor: Executor,
        process_state: ProcessState,
        children: Children,
        forwarder: LogForwarder,
        title: ProcessTitle,
    ) -> None:
        self._channel = channel
        self._interrupts = interrupts
        self._executor = executor
        self._process_state = process_state
        self._children = children
        self._forwarder = forwarder
        self._title = title
        self._inbox = Inbox(channel)
        self._asked_for_replacement = False
        # The task whose start the last Result has announced. Another Started would double the frames of short tasks.
        self._announced: int | None = None

    def run(self) -> None:
        """Run tasks until the supervisor tells the worker to end."""
        inbox, process_state = self._inbox, self._process_state
        while True:
            while not inbox.tasks or process_state.taint:
                self._wait()
                if inbox.told_to_end:
                    return
            task = inbox.tasks.popleft()
            self._announce(task)
            if not inbox.skip_if_revoked(task):
                self._run(task)

    def _announce(self, task: Assignment) -> None:
        """Send the last result and the start of this task in one write, then read the inbox.

        In this order: a supervisor that sends a Revoke before it sees our Started can rely on our finding the Revoke.
        """
        self._channel.send(None if task.token == self._announced else Started(task.token))
        self._announced = None  # valid once: a task that is skipped may be assigned to us again
        self._inbox.take(self._channel.poll())

    def _run(self, task: Assignment) -> None:
        inbox = self._inbox
        self._forwarder.token = task.token
        if inbox.tasks:
            self._title.show_busy()
        else:
            self._title.show_task(task)
        outcome = self._executor.execute(task)
        self._clean_up(outcome)
        if self._interrupts.received:
            inbox.take(self._interrupts.received)
            self._interrupts.received.clear()
        if inbox.tasks and not self._process_state.taint:
            self._announced = inbox.tasks[0].token
        self._channel.buffer(outcome.to_result(task.token, self._announced))

    def _clean_up(self, outcome: Outcome) -> None:
        close_old_connections()
        seconds = outcome.usage.seconds
        self._process_state.restore(seconds, failed=not outcome.succeeded)
        if self._children.started_any or seconds > _REAP_SECONDS:
            self._children.reap()

    def _wait(self) -> None:
        """Send what is left to send, and wait for messages."""
        self._inbox.forget_late_revokes()
        self._process_state.restore_all()
        if self._process_state.taint:
            self._refuse_tasks()
        self._channel.send()
        self._title.show_idle()
        self._children.reap()
        self._inbox.take(self._channel.receive())
        self._executor.transactions.welcome = self._inbox.welcome
        close_old_connections()  # they may have reached CONN_MAX_AGE while the worker was idle

    def _refuse_tasks(self) -> None:
        """Ask once to be replaced, and return all tasks."""
        if not self._asked_for_replacement:
            self._asked_for_replacement = True
            self._channel.buffer(Tainted(self._process_state.taint))
        self._inbox.return_all()
