"""A worker in the process of a test: the executor of real workers, with no supervisor at the other end."""

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
from underway.supervisor.tasks.verdict import VERDICTS, Observation, settle
from underway.wire import messages
from underway.worker.executor import Executor, Outcome

_FOR_THE_STEP = (Exception, SystemExit, Interrupt, asyncio.CancelledError, GeneratorExit)


class Ended(NamedTuple):
    """How an attempt ended: the row to write, None if the step's own transaction has written it."""

    row: FinishRun | AdvanceRun | None
    spawned: list[dict[str, Any]]


def first_task(run: UUID, token: int, lane: Lane, step: Step, given: bytes) -> Task:
    """A run at this step for the first time, as a worker without a supervisor gets it: under no lease."""
    return Task(
        str(run), token, lane, step, number=0, attempts=0, crashes=0, releases=0, input=given, claimed_at=0,
        lease_deadline=0,
    )  # fmt: skip


class LocalWorker:
    """Runs tasks, and judges their endings as a supervisor does. Nobody watches limits, and nobody interrupts."""

    def __init__(self, registry: Registry[Any]) -> None:
        self.guard = _Unguarded()
        self.outbox = _Outbox()
        self.executor = Executor(registry, self.outbox, self.guard, progress_seconds=0)
        self.progress = self.outbox.progress
        self.rng = random.Random()  # noqa: S311 - spreads retries

    @property
    def raised(self) -> BaseException | None:
        """What has left the step, if it has not returned."""
        return self.guard.raised

    def run(self, task: Task) -> Ended:
        """One attempt. What was meant for the test and not for the step passes through: Ctrl-C, pytest.fail, a time-out
        of the test."""
        outcome = self.executor.execute(message(task))
        if self.guard.passing is not None:
            raise self.guard.passing
        return self._judged(task, outcome)

    def _judged(self, task: Task, outcome: Outcome) -> Ended:
        ending, placement, retry_after, spawned, seconds, cpu_seconds, peak_rss, payload = outcome
        now = time.monotonic()
        attempt = Attempt("succeeded", None, now - seconds, now, os.getpid(), cpu_seconds, peak_rss)
        if ending == "committed":
            return Ended(None, [])
        if ending in ("next", "done"):
            row = succeed(task, attempt, placement, payload)
            return Ended(row, [{**spawn, "parent": task.token} for spawn in spawned])
        seen = Observation.FAIL if ending == "fail" else Observation.RETRY
        attempt = attempt._replace(outcome=VERDICTS[seen].outcome, error=payload.decode())
        return Ended(settle(task, seen, attempt, self.rng, retry_after), [])

    def close(self) -> None:
        self.executor.close()


class _Outbox:
    """Keeps what a worker would tell its supervisor."""

    def __init__(self) -> None:
        self.progress: list[dict[str, Any]] = []

    def send(self, message: messages.Message | None = None) -> None:
        if isinstance(message, messages.Progress):
            self.progress.append(orjson.loads(message.payload))


class _Unguarded:
    """In place of a worker's guard, which would take the signals of this process."""

    def __init__(self) -> None:
        self.running: int | None = None
        self.raised: BaseException | None = None
        self.passing: BaseException | None = None

    def begin(self, token: int) -> None:
        self.running = token

    def end(self) -> None:
        """Called on the way out of the step. An executor makes a failed attempt of whatever comes that way."""
        self.running = None
        error = self.raised = sys.exc_info()[1]
        if error is not None and not isinstance(error, _FOR_THE_STEP):
            self.passing = error

    def raise_postponed(self) -> None:
        pass

    @contextmanager
    def delivering(self, deliver: Callable[[str], None]) -> Iterator[None]:
        yield
