"""Runs whose process died once too often, with the evidence."""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from underway import options
from underway.client import Run

if TYPE_CHECKING:
    from underway.app import Underway


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A run that failed because the process died under it `max_crashes` times.

    What is told is of the last death: `outcome` is crashed, out_of_memory or lost (with the whole supervisor), `error`
    has the signal or exit code and the last 8 KB of output, where the traceback of a fatal signal is found. `peak_rss`
    is in bytes; it, `host` and `pid` are None if nobody was left to tell. `input` is that of the step, as plain JSON.
    """

    run: Run[Any]
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


def listed(app: "Underway", job: str | None, limit: int) -> list[Quarantined]:
    from underway.postgres import people

    limit = options.checked_count("limit", limit)
    with app._own() as connection:
        rows = people.list_quarantine(connection, job, limit)
    return [Quarantined(run=app._handle(UUID(row.pop("id")), row["job"]), **row) for row in rows]
