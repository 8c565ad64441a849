"""`run_inline`: one run of a job, its steps called one after the other, without supervisor, workers or database."""

import itertools
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, Never, overload
from uuid import UUID

from typing_extensions import TypeVar

from underway.client.job import Job
from underway.client.run_state import Status
from underway.definition.manifest import Lane
from underway.errors import RunFailed
from underway.ids import new_id
from underway.keys import template
from underway.payload import codec
from underway.postgres.transitions import AdvanceRun, FinishRun
from underway.supervisor.tasks.task import Task, from_hand_over
from underway.testing.caller_transaction import CallerTransaction
from underway.testing.database import refuse_event_loop
from underway.testing.local_worker import LocalWorker, first_task

if TYPE_CHECKING:
    import psycopg

In = TypeVar("In")
R = TypeVar("R", covariant=True)


@dataclass(frozen=True, slots=True)
class InlineAttempt:
    """One try at a step. `delay` is how long the run would have waited after it."""

    step: str
    number: int
    outcome: str
    error: str | None
    delay: timedelta


@dataclass(frozen=True, slots=True)
class Enqueued:
    """A run that a step has enqueued with `cx.enqueue`. It is recorded here, and does not run."""

    id: UUID
    job: str
    value: Any


@dataclass(slots=True)
class InlineRun(Generic[R]):
    """A run that has ended. `progress` holds all that its steps have reported, in order."""

    status: Status = Status.PENDING
    error: str | None = None
    attempts: list[InlineAttempt] = field(default_factory=list)
    enqueued: list[Enqueued] = field(default_factory=list)
    progress: list[dict[str, Any]] = field(default_factory=list)
    _value: Any = None

    def result(self) -> R:
        """The value of `To.done`. Raises RunFailed with the last error."""
        if self.status is Status.FAILED:
            raise RunFailed(f"the run failed: {self.error}")
        value: R = self._value
        return value


@overload
def run_inline(
    job: Job[In, Never, R, Any], value: In, *, conn: "psycopg.Connection[Any] | None" = None
) -> InlineRun[R]: ...
@overload
def run_inline(job: Job[None, Never, R, Any], *, conn: "psycopg.Connection[Any] | None" = None) -> InlineRun[R]: ...
def run_inline(
    job: Job[Any, Any, Any, Any], value: Any = None, *, conn: "psycopg.Connection[Any] | None" = None
) -> InlineRun[Any]:
    """Run the steps of a job until the run ends, in this process and without a database.

    As in a worker, values travel as JSON and are checked, failed attempts are retried per RetryPolicy (without
    waiting), and `state=` factories are called. Timeouts and memory limits are not enforced. `cx.tx` is `conn`, in your
    transaction; a failed attempt leaves nothing in it. Without `conn`, cx.tx raises InsideStep.

    Raises PayloadError if the value could not be enqueued, and JobDefinitionError. Errors of steps are in the attempts.
    """
    refuse_event_loop("run_inline")
    worker = LocalWorker(job.registry, lambda _outbox, _interrupts: CallerTransaction(conn))
    run: InlineRun[Any] = InlineRun(progress=worker.progress)
    with closing(worker):
        task = _first_task(job, value)
        while True:
            row, spawned = worker.run(task)
            assert row is not None
            delay = timedelta(seconds=row.delay if isinstance(row, AdvanceRun) else 0)
            run.attempts.append(
                InlineAttempt(task.step.name, task.attempt, row.attempt.outcome, row.attempt.error, delay)
            )
            run.enqueued += [_decode_spawn(job, spawn) for spawn in spawned]
            if isinstance(row, FinishRun):
                run.status, run.error = Status(row.state), row.attempt.error
                run._value = None if row.payload is None else codec.decode(row.payload, job.result_type)
                break
            task = _next_task(job, task, row)
    return run


_tokens = itertools.count(1)


def _first_task(job: Job[Any, Any, Any, Any], value: Any) -> Task:
    """The first task of a run with this value."""
    first = job.compiled[0]
    payload = codec.encode(value, first.input_type)
    placement = first.spec.placement
    template.fill_both(placement.unique_key, placement.concurrency_key, payload)  # raises as `enqueue` does
    return first_task(new_id(), next(_tokens), Lane(placement.queue, job.name, first.spec.name), first.spec, payload)


def _next_task(job: Job[Any, Any, Any, Any], last: Task, row: AdvanceRun) -> Task:
    """The next attempt: at the same step, or at the next one."""
    if row.payload is None:
        return replace(last, token=next(_tokens), number=row.number, attempts=row.attempts)
    (step,) = [step.spec for step in job.compiled if step.spec.name == row.step]
    return from_hand_over(last, row, next(_tokens), step, 0)


def _decode_spawn(job: Job[Any, Any, Any, Any], spawn: dict[str, Any]) -> Enqueued:
    known = job.registry.jobs.get(spawn["job"])
    input_type = Any if known is None else known.compiled[0].input_type
    return Enqueued(UUID(spawn["id"]), spawn["job"], codec.decode(spawn["input"], input_type))
