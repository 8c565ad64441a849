"""The quarantine: runs whose process died too often, with the evidence. A client lists or releases them."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic
from uuid import UUID

from typing_extensions import TypeVar

from underway.client.run import Run, RunHandle
from underway.definition import options
from underway.definition.app_import import forbid_during_import

if TYPE_CHECKING:
    from underway.postgres.inspection import QuarantineRow
    from underway.postgres.query import BoundQuery

H = TypeVar("H", bound=RunHandle[Any], default=Run[Any], covariant=True)


@dataclass(frozen=True, slots=True)
class Quarantined(Generic[H]):
    """A run that failed because its process died `max_crashes` times.

    The evidence is that of the last death. `outcome` is crashed, out_of_memory or lost (the whole supervisor died).
    `error` has the signal or exit code and the last 8 KB of output, which include the traceback of a fatal signal.
    `peak_rss` is in bytes; it, `host` and `pid` are None if the supervisor died, too. `input` is that of the step, as
    plain JSON.
    """

    run: H
    job: str
    step: str
    queue: str
    crashes: int
    outcome: str
    error: str
    peak_rss: int | None
    host: str | None
    pid: int | None
    input: Any
    finished_at: datetime


def quarantined(job: str | None, limit: int, handle: Callable[[UUID, str], H]) -> "BoundQuery[list[Quarantined[H]]]":
    """The quarantined runs, the newest first. `handle` makes the handle of a run from its ID and job."""
    from underway.postgres import inspection

    options.checked_count("limit", limit)
    return inspection.list_quarantine.bind(job, limit).then(lambda rows: [_from_row(row, handle) for row in rows])


def _from_row(row: "QuarantineRow", handle: Callable[[UUID, str], H]) -> Quarantined[H]:
    return Quarantined(
        run=handle(UUID(row["id"]), row["job"]),
        job=row["job"],
        step=row["step"],
        queue=row["queue"],
        crashes=row["crashes"],
        outcome=row["outcome"],
        error=row["error"],
        peak_rss=row["peak_rss"],
        host=row["host"],
        pid=row["pid"],
        input=row["input"],
        finished_at=row["finished_at"],
    )


def release_quarantined(job: str | None, limit: int | None) -> "BoundQuery[int]":
    """Redrive the quarantined runs of one job or all, or the oldest `limit` of them. Returns their number."""
    from underway.postgres import admin_queries

    forbid_during_import("release_quarantined")
    if limit is not None:
        options.checked_count("limit", limit)
    return admin_queries.release_quarantined.bind(job, limit)
