"""Runs the step of one task, and says how it ended."""

import functools
import logging
import sys
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from underway.client import current_step
from underway.client.context import Context
from underway.client.registry import Registry
from underway.definition.transition import To
from underway.errors import Interrupt, Retry
from underway.payload import codec
from underway.wire.messages import Assignment
from underway.worker import forks, hand_over
from underway.worker.channel import Outbox
from underway.worker.context_variables import Contexts
from underway.worker.failure import message_of, outcome_of
from underway.worker.hand_over import JobStep, steps_by_name
from underway.worker.interrupts import Interrupts
from underway.worker.job_state import JobStates
from underway.worker.logging_setup import PLAIN_LOGS, Logs
from underway.worker.outcome import Outcome
from underway.worker.step_context import PROGRESS_SECONDS, Services, StepContext
from underway.worker.transaction import Transactions
from underway.worker.usage import Meter

if TYPE_CHECKING:
    from underway.worker.event_loop import EventLoop


class Executor:
    """Executes the steps of one app, one task at a time.

    A step runs in a fresh context of its own, with the input that its annotation describes, and can be interrupted only
    between `interrupts.enable` and `interrupts.disable`. It returns a hand-over, or a coroutine that returns one.
    """

    def __init__(
        self,
        registry: Registry[Any],
        outbox: Outbox,
        interrupts: Interrupts,
        *,
        progress_seconds: float = PROGRESS_SECONDS,
        logs: Logs = PLAIN_LOGS,
        transactions: Transactions | None = None,
    ) -> None:
        self._steps = steps_by_name(registry.jobs)
        self._interrupts = interrupts
        self._logs = logs
        self.transactions = transactions or Transactions(outbox, interrupts)
        self._services = Services(registry.database, outbox, interrupts, self.transactions, logs, progress_seconds)
        self._meter = Meter()
        self._contexts = Contexts()
        self._states = JobStates(self._contexts, lambda factory: self._event_loop.run_factory(factory))
        self._forks = forks.depth

    def execute(self, task: Assignment) -> Outcome:
        """How the step ended, whatever it does short of ending the process."""
        self._meter.start()
        step_context = StepContext(self._services, task.token)
        try:
            outcome = self._contexts.fresh().run(self._run_step, task, step_context)
            outcome.spawned = step_context.take_spawned()
        except BaseException as error:
            outcome = self._failed(task, error)
        outcome.usage = self._meter.stop()
        if self.transactions.token == task.token:
            return self._end_transaction(task, outcome)
        return outcome

    def _run_step(self, task: Assignment, step_context: StepContext) -> Outcome:
        at = self._steps[task.job, task.step]
        return hand_over.encode(at, self._call(at, task, step_context))

    def _call(self, at: JobStep, task: Assignment, step_context: StepContext) -> Any:
        cx: Context[Any] = Context(
            run=task.run,
            job=task.job,
            step=at.step.spec.name,
            attempt=task.attempt,
            ends_at=time.time() + task.timeout,
            worker=step_context,
            scheduled_at=task.scheduled_at,
        )
        arguments = (cx, codec.decode(task.payload, at.step.input_type)) if at.step.takes_input else (cx,)
        current_step.set_current(cx)
        try:
            try:
                self._interrupts.enable(task.token)
                if at.job.make_state is not None:
                    step_context.state = self._states.get(at.job)
                returned = at.step.function(*arguments)
                if not isinstance(returned, To) and isinstance(returned, Awaitable):
                    return self._event_loop.run_step(returned)
                return returned
            finally:
                if forks.depth != self._forks:
                    forks.leave(sys.exc_info()[1])
                self._interrupts.disable()
        finally:
            current_step.set_current(None)

    def _end_transaction(self, task: Assignment, outcome: Outcome) -> Outcome:
        """Write the hand-over in the transaction that the step has opened, or roll it back."""
        try:
            return self.transactions.end(task, outcome)
        except (Exception, Interrupt) as error:
            refused = self._failed(task, error)
            refused.usage = outcome.usage
            return refused

    def _failed(self, task: Assignment, error: BaseException) -> Outcome:
        outcome = outcome_of(error)
        if outcome.ending != "interrupted" or message_of(error) == "timeout":  # a cancel or a shutdown is not a failure
            level = logging.WARNING if issubclass(type(error), Retry) else logging.ERROR
            self._logs.attempt_failed(task, error, level)
        return outcome

    @functools.cached_property
    def _event_loop(self) -> "EventLoop":
        """Created for the first async step. A worker without such steps never imports asyncio."""
        from underway.worker.event_loop import EventLoop

        return EventLoop(self._interrupts, self._logs.logger("underway.worker"))

    def close(self) -> None:
        """Close connections and the event loop, in a test process. A worker does not call this: it is killed."""
        self.transactions.close()
        if "_event_loop" in vars(self):
            self._event_loop.close()
