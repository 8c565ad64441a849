"""What people look at: runs, queues, supervisors, dead letters and schedules.

A row is a dictionary, because the command line prints it as JSON: its keys are the keys of that document. Each query's
rows have a type here, so that type checkers know the keys.
"""

from collections.abc import Hashable, Iterable
from datetime import UTC, datetime
from functools import cache
from typing import Any, NamedTuple, TypedDict, TypeVar, cast, get_type_hints
from uuid import UUID

from underway.payload import codec
from underway.postgres import client_queries, schedule_queries
from underway.postgres.client_queries import instant
from underway.postgres.query import QuerySteps, Rows, Statement, query

R = TypeVar("R")

# A search with a filter looks at this many finished runs at most: it takes under a second.
SEARCH_LIMIT = 500_000
# The number of IDs with one prefix that are listed.
MAX_MATCHES = 6

_LIVE = ("pending", "waiting", "in_progress")
_UNSUCCESSFUL = ("failed", "cancelled")
_FINISHED = ("succeeded", *_UNSUCCESSFUL)

# Runs


class RunCounts(TypedDict):
    """What a run has been charged with at its current step."""

    attempts: int
    crashes: int
    releases: int


class _AnyRun(RunCounts):
    id: str
    job: str
    step: str
    state: str
    queue: str
    priority: int
    created_at: datetime
    due_at: datetime | None  # None: finished, or waiting for its concurrency key
    finished_at: datetime | None
    cancel_requested: bool
    progress: dict[str, Any] | None
    unique_key: str | None
    concurrency_key: str | None
    dead_letter: str | None
    error: str | None


class RunSummary(_AnyRun):
    """A run in a list."""


class RunDetails(_AnyRun):
    """Everything about one run, apart from its attempts. `owner`, `host` and `pid` are those of its supervisor."""

    scheduled_at: datetime | None
    expires_at: datetime | None
    lease_expires_at: datetime | None
    owner: str | None
    host: str | None
    pid: int | None
    concurrency_limit: int | None
    quarantined: bool
    input: Any
    result: Any


class AttemptDetails(TypedDict):
    """An attempt that has ended."""

    step: str
    number: int
    outcome: str
    error: str | None
    started_at: datetime | None
    finished_at: datetime
    host: str | None
    pid: int | None
    cpu_seconds: float | None
    peak_rss: int | None


class StoredAttempt(NamedTuple):
    """What an attempt is given at the step where a run stands, or at which it has failed. `input` is JSON."""

    job: str
    queue: str
    step: str
    state: str
    input: str | None  # None: it is not kept
    number: int  # of attempts before this one
    scheduled_at: float | None  # seconds since the epoch


@query
def list_runs(
    *, state: str | None = None, job: str | None = None, queue: str | None = None, stranded: bool = False, limit: int
) -> QuerySteps[list[RunSummary]]:
    """The newest runs that match, the newest first. Of the finished runs, only the newest SEARCH_LIMIT are searched.

    For `failed` or `cancelled`, these are the newest SEARCH_LIMIT runs in that state.
    """
    parameters = {
        "state": state,
        "job": job,
        "queue": queue,
        "stranded": stranded,
        "limit": limit,
        # A state is found in one of the two tables only; the other need not be searched.
        "live": 0 if state in _FINISHED else limit,
        "finished": 0 if state in (*_LIVE, *_UNSUCCESSFUL) or stranded else SEARCH_LIMIT,
        "unsuccessful": SEARCH_LIMIT if state in _UNSUCCESSFUL and not stranded else 0,
    }
    return _objects(RunSummary, (yield Statement("list_runs", parameters)))


@query
def all_looked_at(state: str | None = None) -> QuerySteps[bool]:
    """Whether `list_runs` searches every finished run, or every finished run in this state."""
    statement = "more_unsuccessful_than" if state in _UNSUCCESSFUL else "more_finished_than"
    ((more,),) = yield Statement(statement, {"finished": SEARCH_LIMIT, "state": state})
    return not more


@query
def run_details(run_id: UUID) -> QuerySteps[RunDetails | None]:
    """None if no run has this ID."""
    found = _objects(RunDetails, (yield Statement("run_details", {"id": run_id})))
    return found[0] if found else None


@query
def list_attempts(run_id: UUID) -> QuerySteps[list[AttemptDetails]]:
    """The attempts of a run that have ended, in the order in which they were made."""
    return [_attempt(row) for row in (yield from client_queries.attempts.steps(run_id))]


def _attempt(row: client_queries.AttemptRow) -> AttemptDetails:
    return {
        "step": row.step,
        "number": row.number,
        "outcome": row.outcome,
        "error": row.error,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        "host": row.host,
        "pid": row.pid,
        "cpu_seconds": row.cpu_seconds,
        "peak_rss": row.peak_rss,
    }


@query
def stored_attempt(run_id: UUID) -> QuerySteps[StoredAttempt | None]:
    """None if no run has this ID."""
    rows = yield Statement("stored_attempt", {"id": run_id})
    return StoredAttempt(*rows[0]) if rows else None


# Queues and supervisors


class QueueRow(TypedDict):
    """`late_since` is when the pending run that has waited longest was due."""

    queue: str
    paused: bool
    pending: int
    waiting: int
    in_progress: int
    late_since: datetime | None
    dead_letter: str | None


class SupervisorRow(TypedDict):
    """`state` is idle, busy, silent (no heartbeat for half a minute) or unhealthy, for the reason in `trouble`."""

    id: str
    host: str
    pid: int
    app: str
    started_at: datetime
    seen_at: datetime
    in_progress: int
    state: str
    trouble: str | None


@query
def list_queues() -> QuerySteps[list[QueueRow]]:
    return _objects(QueueRow, (yield Statement("list_queues")))


@query
def knows_queue(queue: str) -> QuerySteps[bool]:
    """Whether a job, a run, a supervisor or an app's declaration names it."""
    ((known,),) = yield Statement("knows_queue", {"queue": queue})
    return bool(known)


@query
def known_queues() -> QuerySteps[set[str]]:
    return {row["queue"] for row in (yield from list_queues.steps())}


@query
def registered_jobs() -> QuerySteps[set[str]]:
    return {name for (name,) in (yield Statement("registered_jobs"))}


@query
def list_supervisors() -> QuerySteps[list[SupervisorRow]]:
    return _objects(SupervisorRow, (yield Statement("list_supervisors")))


# Runs that need attention


class LabelRow(TypedDict):
    """A dead-letter label with the number of its runs, and when the oldest and the newest of them failed."""

    label: str
    runs: int
    oldest: datetime
    newest: datetime


class QuarantineRow(TypedDict):
    """A quarantined run. `outcome`, `peak_rss`, `host` and `pid` are those of its last attempt."""

    id: str
    job: str
    step: str
    queue: str
    crashes: int
    finished_at: datetime
    outcome: str
    peak_rss: int | None
    host: str | None
    pid: int | None
    error: str
    input: Any


class DeadLetterRow(NamedTuple):
    """A failed run with a dead-letter label. `input` is JSON."""

    id: UUID
    job: str
    step: str
    queue: str
    error: str | None
    input: str
    finished_at: datetime
    attempts: int
    crashes: int


class DeadLetterDetails(TypedDict):
    """A failed run with a dead-letter label. `input` is a plain JSON value."""

    id: str
    job: str
    step: str
    queue: str
    error: str | None
    input: Any
    finished_at: datetime
    attempts: int
    crashes: int


@query
def dead_letter_labels() -> QuerySteps[list[LabelRow]]:
    return _objects(LabelRow, (yield Statement("dead_letter_labels")))


@query
def dead_letters(label: str, limit: int) -> QuerySteps[list[DeadLetterRow]]:
    """The failed runs with this label, the oldest first."""
    rows = yield Statement("dead_letters", {"label": label, "limit": limit})
    return [DeadLetterRow._make([*row[:6], instant(row[6]), *row[7:]]) for row in rows]


@query
def list_dead_letters(label: str, limit: int) -> QuerySteps[list[DeadLetterDetails]]:
    """The failed runs with this label, the oldest first."""
    return [_dead_letter(row) for row in (yield from dead_letters.steps(label, limit))]


def _dead_letter(row: DeadLetterRow) -> DeadLetterDetails:
    return {
        "id": str(row.id),
        "job": row.job,
        "step": row.step,
        "queue": row.queue,
        "error": row.error,
        "input": codec.decode_plain(row.input),
        "finished_at": row.finished_at,
        "attempts": row.attempts,
        "crashes": row.crashes,
    }


@query
def list_quarantine(job: str | None, limit: int) -> QuerySteps[list[QuarantineRow]]:
    """The quarantined runs of one job or all, the newest first."""
    return _objects(QuarantineRow, (yield Statement("list_quarantine", {"job": job, "limit": limit})))


# Schedules


class ScheduleDetails(TypedDict):
    """`input` is a plain JSON value."""

    job: str
    name: str
    cron: str
    zone: str
    catch_up: str
    overlap: bool
    input: Any
    next_at: datetime


@query
def list_schedules() -> QuerySteps[list[ScheduleDetails]]:
    return [_schedule(row) for row in (yield from schedule_queries.all_schedules.steps())]


def _schedule(row: schedule_queries.ScheduleRow) -> ScheduleDetails:
    return {
        "job": row.job,
        "name": row.name,
        "cron": row.cron,
        "zone": row.zone,
        "catch_up": row.catch_up,
        "overlap": row.overlap,
        "input": codec.decode_plain(row.input),
        "next_at": row.next_at,
    }


# Search by the beginning of an ID


class Found(NamedTuple):
    """A run or a supervisor whose ID is in a range, with what tells it apart: state and job, or place and app."""

    id: UUID
    about: str
    more: str


@query
def runs_like(least: UUID, most: UUID) -> QuerySteps[list[Found]]:
    """The first runs with IDs in this range."""
    return _found((yield Statement("runs_between", _range(least, most))))


@query
def supervisors_like(least: UUID, most: UUID) -> QuerySteps[list[Found]]:
    """The first supervisors with IDs in this range."""
    return _found((yield Statement("supervisors_between", _range(least, most))))


def _range(least: UUID, most: UUID) -> dict[str, Any]:
    return {"lowest": least, "highest": most, "limit": MAX_MATCHES}


def _found(rows: Rows) -> list[Found]:
    return [Found(*row) for row in rows]


# JSON objects as rows


def _objects(kind: type[R], rows: Iterable[tuple[Any, ...]]) -> list[R]:
    """The JSON object in each row, its instants parsed where the type says so."""
    instants = _instants(cast(Hashable, kind))
    return [
        cast(R, {key: _parsed(value) if key in instants else value for key, value in row.items()}) for (row,) in rows
    ]


@cache
def _instants(kind: Any) -> frozenset[str]:
    return frozenset(key for key, hint in get_type_hints(kind).items() if hint in (datetime, datetime | None))


# JSON has no instants. Postgres writes them there in one format, whatever the DateStyle.


def _parsed(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:  # later than Python's last year: the run is kept for ever
        return datetime.max.replace(tzinfo=UTC)
