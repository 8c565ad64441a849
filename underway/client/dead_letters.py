"""Dead letters: failed runs that need attention. A client lists, redrives or discards them."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic
from uuid import UUID

from typing_extensions import TypeVar

from underway.client.registry import Registry
from underway.client.run import Run, RunHandle
from underway.definition import options
from underway.definition.app_import import forbid_during_import
from underway.errors import InvalidOption
from underway.ids import read_id
from underway.payload import codec

if TYPE_CHECKING:
    from underway.postgres.inspection import DeadLetterRow
    from underway.postgres.query import BoundQuery

H = TypeVar("H", bound=RunHandle[Any], default=Run[Any], covariant=True)

# The default of `input=`: None is an input, too.
UNCHANGED: Any = object()


@dataclass(frozen=True, slots=True)
class DeadLetter(Generic[H]):
    """A failed run with a dead-letter label. `step` is the one that failed, `input` its input as plain JSON."""

    run: H
    job: str
    step: str
    queue: str
    error: str | None
    input: Any
    finished_at: datetime
    attempts: int
    crashes: int


def dead_letters(label: str, limit: int, handle: Callable[[UUID, str], H]) -> "BoundQuery[list[DeadLetter[H]]]":
    """The failed runs with this label, the oldest first. `handle` makes the handle of a run from its ID and job."""
    from underway.postgres import inspection

    label = options.checked_label("label", label)
    limit = options.checked_count("limit", limit)
    return inspection.dead_letters.bind(label, limit).then(lambda rows: [_from_row(row, handle) for row in rows])


def _from_row(row: "DeadLetterRow", handle: Callable[[UUID, str], H]) -> DeadLetter[H]:
    return DeadLetter(
        run=handle(row.id, row.job),
        job=row.job,
        step=row.step,
        queue=row.queue,
        error=row.error,
        input=codec.decode_plain(row.input),
        finished_at=row.finished_at,
        attempts=row.attempts,
        crashes=row.crashes,
    )


def redrive(
    registry: Registry[Any], run_or_label: RunHandle[Any] | UUID | str, given: Any, limit: int | None
) -> "BoundQuery[int]":
    """Redrive one run, perhaps with another input, or all runs with a label. Returns the number of runs redriven."""
    from underway.postgres import admin_queries

    forbid_during_import("redrive")
    run_id = _run_id(run_or_label)
    if run_id is None:
        if given is not UNCHANGED:
            raise InvalidOption("input= applies to a single run: pass a Run or a run ID, not a label")
        if limit is not None:
            options.checked_count("limit", limit)
        return admin_queries.redrive_known_label.bind(str(run_or_label), limit, registry.labels())
    if limit is not None:
        raise InvalidOption("limit= applies to a label, not to a single run")

    def encode_input(job: str, step: str) -> bytes:
        return codec.encode(given, registry.input_type(job, step))

    return admin_queries.redrive_failed.bind(run_id, None if given is UNCHANGED else encode_input)


def discard(registry: Registry[Any], run_or_label: RunHandle[Any] | UUID | str) -> "BoundQuery[int]":
    """Remove the label of one run, or of all runs that have it. Returns the number of runs."""
    from underway.postgres import admin_queries

    forbid_during_import("discard")
    run_id = _run_id(run_or_label)
    if run_id is not None:
        return admin_queries.discard.bind(run_id).then(int)
    return admin_queries.discard_known_label.bind(str(run_or_label), registry.labels())


def _run_id(run_or_label: object) -> UUID | None:
    """The ID of one run; None for a label."""
    run_id = run_or_label.id if isinstance(run_or_label, RunHandle) else read_id(run_or_label)
    if run_id is None and not isinstance(run_or_label, str):
        raise InvalidOption(f"expected a Run, a run ID or a dead-letter label, not {run_or_label!r}")
    if run_id is None:
        options.checked_name("label", run_or_label)
    return run_id
