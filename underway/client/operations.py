"""What a client asks about runs and queues: each call is checked and turned into a query here.

The sync and the async client run the same query, each on a connection of its kind. Names, IDs and options are checked
when the query is made, and calls that are refused inside a step or during the import of an app are refused then. `conn`
is the caller's connection, or None for one of ours.
"""

import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any
from uuid import UUID

from underway.client.current_step import current, refuse_inside_step
from underway.client.registry import Registry
from underway.client.run_state import Attempt, Status
from underway.definition import options
from underway.definition.app_import import forbid_during_import
from underway.definition.job_definition import JobDefinition
from underway.definition.manifest import Placement
from underway.definition.options import RunOptions
from underway.errors import InsideStep, PayloadError, RunCancelled, RunFailed, RunNotFound
from underway.ids import new_id
from underway.keys import template
from underway.payload import codec

if TYPE_CHECKING:
    from underway.postgres.admin_queries import PausedQueue
    from underway.postgres.client_queries import AttemptRow, Enqueued, KeyedRun
    from underway.postgres.query import BoundQuery

log = logging.getLogger("underway")

# In every function: underway.postgres is imported at the first call. A worker that never calls needs no driver.

# Enqueue


def enqueue(
    job: JobDefinition[Any, Any, Any], value: Any, conn: object, given: RunOptions
) -> "BoundQuery[list[Enqueued]]":
    """Enqueue one run. Raises PayloadError, InvalidOption, JobDefinitionError."""
    from underway.postgres import client_queries

    _refuse_enqueue(conn)
    first = job.compiled[0]
    placement = options.placed(first.spec.placement, given)
    run_id, payload = new_id(), codec.encode(value, first.input_type)
    if placement.keyed:
        keyed = [_with_keys(run_id, payload, placement)]
        return client_queries.insert_keyed_runs.bind(keyed, job.name, first.spec.name, placement)
    return client_queries.insert_run.bind(run_id, job.name, first.spec.name, placement, payload)


def enqueue_many(
    job: JobDefinition[Any, Any, Any], values: Iterable[Any], conn: object, given: RunOptions, *, in_one: bool
) -> "BoundQuery[list[Enqueued]]":
    """Enqueue a run for each value. Values without keys are encoded while they are sent. `in_one`: see copy_runs."""
    from underway.postgres import client_queries

    _refuse_enqueue(conn)
    first = job.compiled[0]
    placement = options.placed(first.spec.placement, given)
    rows = _encoded(codec.codec_for(first.input_type), values)
    if placement.keyed:
        keyed = [_with_keys(run_id, payload, placement, index) for index, (run_id, payload) in enumerate(rows)]
        return client_queries.insert_keyed_runs.bind(keyed, job.name, first.spec.name, placement)
    return client_queries.copy_runs.bind(rows, job.name, first.spec.name, placement, in_one)


def _refuse_enqueue(conn: object) -> None:
    forbid_during_import("enqueue")
    if conn is None:
        instead = "use cx.enqueue(job, value), or job.enqueue(…, conn=cx.tx) for its options: both commit with the step"
        refuse_inside_step("enqueue without conn=", instead)


def _encoded(typed: codec.Codec, values: Iterable[Any]) -> Iterator[tuple[UUID, bytes]]:
    for index, value in enumerate(values):
        try:
            payload = typed.encode(value)
        except PayloadError as error:
            raise PayloadError(f"value {index}: {error}") from error
        yield new_id(), payload


def _with_keys(run_id: UUID, payload: bytes, placement: Placement, index: int | None = None) -> "KeyedRun":
    from underway.postgres import client_queries

    try:
        unique, concurrency = template.fill_both(placement.unique_key, placement.concurrency_key, payload)
    except PayloadError as error:
        raise error if index is None else PayloadError(f"value {index}: {error}") from error
    return client_queries.KeyedRun(run_id, payload, unique, concurrency)


# Read


def job_of(run_id: UUID) -> "BoundQuery[str]":
    """The name of a run's job. Raises RunNotFound."""
    from underway.postgres import client_queries

    return client_queries.job_of.bind(run_id).then(lambda name: _known(run_id, name))


def status(run_id: UUID) -> "BoundQuery[Status]":
    """Raises RunNotFound."""
    from underway.postgres import client_queries

    return client_queries.status.bind(run_id).then(lambda state: Status(_known(run_id, state)))


def _known(run_id: UUID, found: str | None) -> str:
    if found is None:
        raise RunNotFound(f"no run with ID {run_id}: it was never committed, or its retention (keep) has expired")
    return found


def result(run_id: UUID, result_type: Any) -> "BoundQuery[Any]":
    """The result of a finished run. Raises RunFailed, RunCancelled, RunNotFound."""
    from underway.postgres import client_queries

    def decoded(outcome: tuple[str, str | None, str | None] | None) -> Any:
        if outcome is None:
            raise RunNotFound(f"run {run_id} no longer exists: its retention (keep) has expired")
        state, result, error = outcome
        if state == Status.FAILED:
            raise RunFailed(f"run {run_id} failed: {error}")
        if state == Status.CANCELLED:
            raise RunCancelled(f"run {run_id} was cancelled")
        return codec.decode(result or "null", result_type)

    return client_queries.outcome.bind(run_id).then(decoded)


def attempts(run_id: UUID) -> "BoundQuery[list[Attempt]]":
    """The attempts that have ended, in order."""
    from underway.postgres import client_queries

    return client_queries.attempts.bind(run_id).then(_attempts)


def _attempts(rows: "list[AttemptRow]") -> list[Attempt]:
    return [Attempt(*row) for row in rows]


# Cancel


def cancel(run_id: UUID, conn: object) -> "BoundQuery[bool]":
    """Cancel one run. Raises InsideStep for a step's own run in the transaction of its hand-over."""
    from underway.postgres import client_queries

    forbid_during_import("Run.cancel")
    _refuse_own_end("Run.cancel", run_id, conn)
    return client_queries.cancel.bind(run_id)


def cancel_all(job: JobDefinition[Any, Any, Any], conn: object) -> "BoundQuery[int]":
    """Cancel all live runs of a job. Raises InsideStep for a step's own job in the transaction of its hand-over."""
    from underway.postgres import client_queries

    forbid_during_import("cancel_all")
    _refuse_own_end("cancel_all", job.name, conn)
    return client_queries.cancel_job.bind(job.name)


def cancel_key(
    job: JobDefinition[Any, Any, Any], unique_key: str | None, concurrency_key: str | None
) -> "BoundQuery[int]":
    """Cancel the live runs of a job that have one of these keys. Raises InvalidOption."""
    from underway.postgres import client_queries

    forbid_during_import("cancel")
    return client_queries.cancel_key.bind(
        job.name, unique_key=unique_key, concurrency_key=concurrency_key, elsewhere=_steps_with_another_key(job)
    )


def _refuse_own_end(call: str, run_or_job: UUID | str, conn: object) -> None:
    cx = current()
    if cx is None or conn is None or run_or_job not in (cx.run_id, cx.job):
        return
    from underway.postgres.step_transaction import StepConnection

    if isinstance(conn, StepConnection):
        raise InsideStep(
            f"{call}(conn=cx.tx) inside a step of the same run ({cx.job}.{cx.step}): the step hands over in that "
            f"transaction, so neither could commit: raise Fail to end the run, or cancel it without conn="
        )


def _steps_with_another_key(job: JobDefinition[Any, Any, Any]) -> list[str]:
    """The steps at which a run of this job may not have the concurrency key that it has at another step."""
    steps = [step.spec for step in job.compiled]
    unkeyed = [step for step in steps if step.placement.concurrency_key is None]
    others = [step for step in steps if step.placement.concurrency_key != steps[0].placement.concurrency_key]
    return [] if len(steps) == 1 else [name for step in unkeyed or others for name in step.names]


# Queues and registration


def pause(registry: Registry[Any], queue: str) -> "BoundQuery[bool]":
    """Pause a queue, with a warning if neither this app nor the database knows it."""
    from underway.postgres import admin_queries

    forbid_during_import("pause")
    options.checked_name("queue", queue)

    def warn_of_unknown(paused: "PausedQueue") -> bool:
        if paused.others is not None:
            existing = admin_queries.existing(paused.others - {queue})
            log.warning("pausing unknown queue %r: no job, run or supervisor uses it yet; %s", queue, existing)
        return paused.changed

    return admin_queries.pause_any.bind(queue, registry.queue_names()).then(warn_of_unknown)


def resume(queue: str) -> "BoundQuery[bool]":
    """Undo `pause`."""
    from underway.postgres import admin_queries

    forbid_during_import("resume")
    return admin_queries.resume.bind(options.checked_name("queue", queue))


def register(registry: Registry[Any]) -> "BoundQuery[list[str]]":
    """Register the declared jobs and queues in the database. Returns the names of the jobs."""
    from underway.postgres import client_queries

    forbid_during_import("sync")
    manifest = registry.manifest()
    names = [job.name for job in manifest.jobs]
    return client_queries.register_app.bind(manifest.jobs, manifest.queues).then(lambda _: names)
