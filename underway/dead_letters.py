"""Runs that failed for good and wait for somebody: look at them, let them go on, or let them be."""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from underway import codec, options
from underway.client import Run
from underway.errors import InvalidOption, UnknownJob
from underway.ids import read_id
from underway.loading import refuse_while_loading

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
    from underway.postgres import control

    label = options.checked_label("label", label)
    limit = options.checked_count("limit", limit)
    with app._own() as connection:
        rows = control.dead_letters(connection, label, limit)
    return [
        DeadLetter(app._handle(run_id, job), job, step, queue, error, codec.decode_plain(given), *rest)
        for run_id, job, step, queue, error, given, *rest in rows
    ]


def redrive(
    app: "Underway",
    what: Run[Any] | UUID | str,
    given: Any,
    limit: int | None,
    conn: "psycopg.Connection[Any] | None",
) -> int:
    from underway.postgres import control

    refuse_while_loading("redrive")
    run_id = _run_id(what)
    if run_id is None:
        if given is not UNCHANGED:
            raise InvalidOption("input= is for one run: give its Run or its id, not a label")
        if limit is not None:
            options.checked_count("limit", limit)
        with app._given_or_own(conn) as connection:
            redriven = control.redrive_label(connection, str(what), limit)
            if not redriven:
                control.refuse_unknown_label(connection, str(what), _declared(app))
            return redriven
    if limit is not None:
        raise InvalidOption("limit= is for a label, not for one run")
    with app._given_or_own(conn) as connection:
        payload = None
        # Also refuses a cancelled run: the refusal in SQL would take the transaction along that it is part of.
        failed = control.failed_step(connection, run_id)
        if failed is None:
            return 0
        if given is not UNCHANGED:
            payload = codec.encode(given, _input_type(app, *failed))
        return int(control.redrive(connection, run_id, payload))


def discard(app: "Underway", what: Run[Any] | UUID | str, conn: "psycopg.Connection[Any] | None") -> int:
    from underway.postgres import control

    refuse_while_loading("discard")
    run_id = _run_id(what)
    with app._given_or_own(conn) as connection:
        if run_id is not None:
            return int(control.discard(connection, run_id))
        discarded = control.discard_label(connection, str(what))
        if not discarded:
            control.refuse_unknown_label(connection, str(what), _declared(app))
        return discarded


def _declared(app: "Underway") -> set[str]:
    """The labels that this app declares; they may not be registered in the database yet."""
    return {queue.dead_letter for queue in app._queues.values() if queue.dead_letter is not None}


def _run_id(what: object) -> UUID | None:
    """The id of one run; None for a label."""
    run_id = what.id if isinstance(what, Run) else read_id(what)
    if run_id is None and not isinstance(what, str):
        raise InvalidOption(f"a Run, the UUID of one, or a dead-letter label is needed, not {what!r}")
    if run_id is None:
        options.checked_name("label", what)
    return run_id


def _input_type(app: "Underway", job: str, step: str) -> Any:
    declared = app.jobs.get(job)
    for compiled in () if declared is None else declared.compiled:
        if step in compiled.spec.names:
            return compiled.input_type
    raise UnknownJob(f"this app has no step {step!r} in a job {job!r}, so the type of its input is not known here")
