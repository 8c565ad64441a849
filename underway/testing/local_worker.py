"""A worker within the process of a test: the executor of real workers, without a supervisor."""

import asyncio
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from uuid import UUID

import orjson

from underway.client.registry import Registry
from underway.definition.manifest import Lane, Step
from underway.errors import Interrupt
from underway.postgres.transitions import AdvanceRun, Attempt, FinishRun, succeed
from underway.supervisor.tasks.task import Task, message
from underway.supervisor.tasks.verdict import VERDICTS, Observation, decide
from underway.wire.messages import Message, Progress
from underway.worker.channel import Outbox
from underway.worker.executor import Executor
from underway.worker.interrupts import Interrupts
from underway.worker.outcome import Outcome
from underway.worker.transaction import Transactions

# Exceptions that make a failed attempt. Any other BaseException concerns the test: Ctrl-C, pytest.fail, a test timeout.
_STEP_ERRORS = (Exception, SystemExit, Interrupt, asyncio.CancelledError, GeneratorExit)


class AttemptEnd(NamedTuple):
    """The row to write, None if the step's own transaction has written it; and the runs to enqueue with it."""

    row: FinishRun | AdvanceRun | None
    spawned: list[dict[str, Any]]


def first_task(run: UUID, token: int, lane: Lane, step: Step, given: bytes) -> Task:
    """The first attempt of a run at this step. There is no supervisor, so it has no lease."""
    return Task(
        str(run), token, lane, step, number=0, attempts=0, crashes=0, releases=0, input=given, claimed_at=0,
        lease_deadline=0,
    )  # fmt: skip


class LocalWorker:
    """Runs tasks, and decides what follows as a supervisor does. No limits are enforced, and no step is interrupted."""

    def __init__(
        self, registry: Registry[Any], transactions: Callable[[Outbox, Interrupts], Transactions] = Transactions
    ) -> None:
        self._interrupts = _NoInterrupts()
        self._outbox = _KeptMessages()
        self._executor = Executor(
            registry,
            self._outbox,
            self._interrupts,
            progress_seconds=0,
            transactions=transactions(self._outbox, self._interrupts),
        )
        self.transactions = self._executor.transactions
        self.progress = self._outbox.progress
        self.rng = random.Random()  # noqa: S311 - spreads retries

    @property
    def raised(self) -> BaseException | None:
        """The exception that has left the last step, if it has not returned."""
        return self._interrupts.raised

    def run(self, task: Task) -> AttemptEnd:
        """Run one attempt. Raises an exception that concerns the test rather than the step."""
        self._interrupts.raised = None
        outcome = self._executor.execute(message(task))
        if self.raised is not None and not isinstance(self.raised, _STEP_ERRORS):
            raise self.raised
        return self._decide(task, outcome)

    def _decide(self, task: Task, outcome: Outcome) -> AttemptEnd:
        if outcome.ending == "committed":
            return AttemptEnd(None, [])
        now = time.monotonic()
        seconds, cpu_seconds, peak_rss = outcome.usage
        attempt = Attempt("succeeded", None, now - seconds, now, os.getpid(), cpu_seconds, peak_rss)
        if outcome.hands_over:
            row = succeed(task, attempt, outcome.next_step, outcome.payload)
            return AttemptEnd(row, [{**spawn, "parent": task.token} for spawn in outcome.spawned])
        seen = Observation.FAIL if outcome.ending == "fail" else Observation.RETRY
        attempt = attempt._replace(outcome=VERDICTS[seen].outcome, error=outcome.payload.decode())
        return AttemptEnd(decide(task, seen, attempt, self.rng, outcome.retry_after), [])

    def close(self) -> None:
        self._executor.close()


class _KeptMessages:
    """Keeps the progress that a worker would send to its supervisor."""

    def __init__(self) -> None:
        self.progress: list[dict[str, Any]] = []

    def send(self, message: Message | None = None) -> None:
        if isinstance(message, Progress):
            self.progress.append(orjson.loads(message.payload))


class _NoInterrupts:
    """In place of an InterruptHandler, which would replace the signal handlers of this process."""

    def __init__(self) -> None:
        self.running: int | None = None
        self.raised: BaseException | None = None

    def enable(self, token: int) -> None:
        self.running = token

    def disable(self) -> None:
        """Called while an exception leaves the step, before the executor makes a failed attempt of it."""
        self.running = None
        self.raised = sys.exc_info()[1]

    def raise_pending(self) -> None:
        pass

    @contextmanager
    def delivered_by(self, deliver: Callable[[str], None]) -> Iterator[None]:
        yield
