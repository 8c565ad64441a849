"""Runs that failed for good and wait for somebody: look at them, let them go on, or let them be."""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from underway.client.runs import Run
from underway.definition import options
from underway.definition.loading import forbid_during_import
from underway.errors import InvalidOption, UnknownJob
from underway.ids import read_id
from underway.payload import codec

if TYPE_CHECKING:
    import psycopg

    from underway.app import Underway

UNCHANGED: Any = object()


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A failed run with a dead-letter label. `step` is the one that failed, `input` its input as plain JSON."""

    run: Run[Any]
    job: str
    step: str
    queue: str
    error: str | None
    input: Any
    finished_at: datetime
    attempts: int
    crashes: int


def listed(app: "Underway", label: str, limit: int) -> list[DeadLetter]:
    from underway.postgres import admin_queries

    label = options.checked_label("label", label)
    with app._own() as connection:
        rows = admin_queries.dead_letters(connection, label, limit)
    return [
        DeadLetter(app._handle(run_id, job), job, step, queue, error, codec.decode(given, Any), *rest)
        for run_id, job, step, queue, error, given, *rest in rows
    ]


def redrive(
    app: "Underway",
    what: Run[Any] | UUID | str,
    given: Any,
    limit: int | None,
    conn: "psycopg.Connection[Any] | None",
) -> int:
    from underway.postgres import admin_queries

    forbid_during_import("redrive")
    run_id = _run_id(what)
    if run_id is None:
        if given is not UNCHANGED:
            raise InvalidOption("input= applies to a single run: pass a Run or a run ID, not a label")
        with app._given_or_own(conn) as connection:
            redriven = admin_queries.redrive_label(connection, str(what), limit)
            if not redriven:
                admin_queries.refuse_unknown_label(connection, str(what), _declared(app))
            return redriven
    if limit is not None:
        raise InvalidOption("limit= applies to a label, not to a single run")
    with app._given_or_own(conn) as connection:
        payload = None
        # Also refuses a cancelled run: the refusal in SQL would take the transaction along that it is part of.
        failed = admin_queries.failed_step(connection, run_id)
        if failed is None:
            return 0
        if given is not UNCHANGED:
            payload = codec.encode(given, _input_type(app, *failed))
        return int(admin_queries.redrive(connection, run_id, payload))


def discard(app: "Underway", what: Run[Any] | UUID | str, conn: "psycopg.Connection[Any] | None") -> int:
    from underway.postgres import admin_queries

    forbid_during_import("discard")
    run_id = _run_id(what)
    with app._given_or_own(conn) as connection:
        if run_id is not None:
            return int(admin_queries.discard(connection, run_id))
        discarded = admin_queries.discard_label(connection, str(what))
        if not discarded:
            admin_queries.refuse_unknown_label(connection, str(what), _declared(app))
        return discarded


def _declared(app: "Underway") -> set[str]:
    """The labels that this app declares; they may not be registered in the database yet."""
    return {queue.dead_letter for queue in app._queues.values() if queue.dead_letter is not None}


def _run_id(what: object) -> UUID | None:
    """The id of one run; None for a label."""
    run_id = what.id if isinstance(what, Run) else read_id(what)
    if run_id is None and not isinstance(what, str):
        raise InvalidOption(f"expected a Run, a run ID or a dead-letter label, not {what!r}")
    return run_id


def _input_type(app: "Underway", job: str, step: str) -> Any:
    declared = app.jobs.get(job)
    for compiled in () if declared is None else declared.compiled:
        if step in compiled.spec.names:
            return compiled.input_type
    raise UnknownJob(f"unknown step: this app has no step {step!r} in job {job!r}, so the type of its input is unknown")
