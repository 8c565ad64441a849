"""What people look at: rows as dictionaries, whose keys are what the command line prints as JSON."""

from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

import orjson
import psycopg

from underway.postgres import schedules
from underway.postgres.asking import fetch

Row = dict[str, Any]

# A search with a filter ends after so many finished runs: under a second.
LOOKED_AT = 500_000

_LIVE = ("pending", "waiting", "in_progress")
_UNSUCCESSFUL = ("failed", "cancelled")
_FINISHED = ("succeeded", *_UNSUCCESSFUL)
ALIKE = 6


class Found(NamedTuple):
    """Something whose id begins as asked, and what tells it from its siblings: state and job, or place and app."""

    id: UUID
    about: str
    more: str


class StoredAttempt(NamedTuple):
    """What an attempt at the step where a run stands, or has failed, is given. `input` is JSON."""

    job: str
    queue: str
    step: str
    state: str
    input: str | None  # None: it is not kept
    number: int  # of attempts before this one
    scheduled_at: float | None  # seconds of the epoch


def list_runs(
    connection: psycopg.Connection[Any],
    *,
    state: str | None = None,
    job: str | None = None,
    queue: str | None = None,
    stranded: bool = False,
    limit: int,
) -> list[Row]:
    """The newest runs that fit, the newest first; of the finished ones only the newest LOOKED_AT are looked at.

    Of those that failed, or were cancelled, the newest LOOKED_AT of their own kind.
    """
    parameters = {
        "state": state,
        "job": job,
        "queue": queue,
        "stranded": stranded,
        "limit": limit,
        # Half of the tables cannot have such a run, and need not be searched for it.
        "live": 0 if state in _FINISHED else limit,
        "finished": 0 if state in (*_LIVE, *_UNSUCCESSFUL) or stranded else LOOKED_AT,
        "unsuccessful": LOOKED_AT if state in _UNSUCCESSFUL and not stranded else 0,
    }
    return _objects(connection, "list_runs", parameters)


def all_looked_at(connection: psycopg.Connection[Any], state: str | None = None) -> bool:
    """Whether `list_runs` looks at every finished run there is, in this state."""
    statement = "more_unsuccessful_than" if state in _UNSUCCESSFUL else "more_finished_than"
    return not fetch(connection, statement, {"finished": LOOKED_AT, "state": state})[0][0]


def run(connection: psycopg.Connection[Any], run_id: UUID) -> Row | None:
    rows = _objects(connection, "run_for_people", {"id": run_id})
    return rows[0] if rows else None


def stored_attempt(connection: psycopg.Connection[Any], run_id: UUID) -> StoredAttempt | None:
    rows = fetch(connection, "stored_attempt", {"id": run_id})
    return StoredAttempt(*rows[0]) if rows else None


def runs_like(connection: psycopg.Connection[Any], least: UUID, most: UUID) -> list[Found]:
    """A few of the runs with ids in this range."""
    return _found(connection, "runs_between", least, most)


def list_queues(connection: psycopg.Connection[Any]) -> list[Row]:
    return _objects(connection, "list_queues")


def knows_queue(connection: psycopg.Connection[Any], queue: str) -> bool:
    """Whether a job, a run, a supervisor or an app's declaration names it."""
    return bool(fetch(connection, "knows_queue", {"queue": queue})[0][0])


def known_queues(connection: psycopg.Connection[Any]) -> set[str]:
    return {queue["queue"] for queue in list_queues(connection)}


def list_supervisors(connection: psycopg.Connection[Any]) -> list[Row]:
    return _objects(connection, "list_supervisors")


def supervisors_like(connection: psycopg.Connection[Any], least: UUID, most: UUID) -> list[Found]:
    return _found(connection, "supervisors_between", least, most)


def dead_letter_labels(connection: psycopg.Connection[Any]) -> list[Row]:
    return _objects(connection, "dead_letter_labels")


def list_quarantine(connection: psycopg.Connection[Any], job: str | None, limit: int) -> list[Row]:
    return _objects(connection, "list_quarantine", {"job": job, "limit": limit})


def list_schedules(connection: psycopg.Connection[Any]) -> list[Row]:
    return [{**row._asdict(), "input": orjson.loads(row.input)} for row in schedules.every(connection)]


def _found(connection: psycopg.Connection[Any], statement: str, least: UUID, most: UUID) -> list[Found]:
    parameters = {"lowest": least, "highest": most, "limit": ALIKE}
    return [Found(*row) for row in fetch(connection, statement, parameters)]


def _objects(connection: psycopg.Connection[Any], statement: str, parameters: Any = None) -> list[Row]:
    return [
        {key: _instant(value) if key in _INSTANTS else value for key, value in row.items()}
        for (row,) in fetch(connection, statement, parameters)
    ]


# JSON has no instants; Postgres writes them in the one form that no DateStyle changes.
_INSTANTS = {
    *("created_at", "due_at", "scheduled_at", "finished_at", "expires_at", "lease_expires_at", "late_since"),
    *("started_at", "seen_at", "oldest", "newest"),
}


def _instant(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:  # kept for ever: beyond what Python can count
        return datetime.max.replace(tzinfo=UTC)
