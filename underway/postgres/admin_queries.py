"""What people ask of queues, dead letters and supervisors, on any psycopg connection."""

from collections.abc import Collection, Iterable
from typing import Any
from uuid import UUID

import psycopg
from psycopg.pq import TransactionStatus

from underway.errors import InvalidOption, RunCancelled
from underway.postgres.client_queries import clock, instant
from underway.postgres.cursors import Json
from underway.postgres.query import fetch

_CANCEL_IS_FINAL = "UW004"
_TOGETHER = 1000
_NAMED = 10


def pause(connection: psycopg.Connection[Any], queue: str) -> bool:
    """Whether it was not paused before."""
    return bool(fetch(connection, "pause_queue", {"queue": queue})[0][0])


def resume(connection: psycopg.Connection[Any], queue: str) -> bool:
    """Whether it was paused before."""
    return bool(fetch(connection, "resume_queue", {"queue": queue})[0][0])


def register_queue(connection: psycopg.Connection[Any], name: str, dead_letter: str | None) -> None:
    fetch(connection, "register_queue", {"name": name, "dead_letter": dead_letter})


def shut_down(connection: psycopg.Connection[Any], supervisor: UUID | None = None) -> list[UUID]:
    """Ask one supervisor, or all, to stop as TERM does; who was asked."""
    return [id_ for (id_,) in fetch(connection, "shut_down", {"supervisor": supervisor})]


def present(connection: psycopg.Connection[Any], supervisors: Iterable[UUID]) -> list[UUID]:
    """Which of these supervisors have not left yet. A killed one is absent after half a minute."""
    return [id_ for (id_,) in fetch(connection, "present_supervisors", {"ids": list(supervisors)})]


def dead_letters(connection: psycopg.Connection[Any], label: str, limit: int) -> list[tuple[Any, ...]]:
    """Id, job, step, queue, error, input, end, attempts, crashes of each, the oldest first."""
    return [
        (*row[:6], instant(row[6]), *row[7:])
        for row in fetch(connection, "dead_letters", {"label": label, "limit": limit})
    ]


def failed_step(connection: psycopg.Connection[Any], run_id: UUID) -> tuple[str, str] | None:
    """(job, step) at which a run has failed; None if it has not. Raises RunCancelled."""
    for job, step, state in fetch(connection, "failed_step", {"id": run_id}):
        if state == "cancelled":
            raise _cancelled(run_id)
        return job, step
    return None


def redrive(connection: psycopg.Connection[Any], run_id: UUID, payload: bytes | None = None) -> bool:
    """Whether it goes on: it had failed, and no other run is live under its unique key. Raises RunCancelled."""
    given = None if payload is None else Json(payload.decode())
    try:
        return bool(fetch(connection, "redrive_run", {"id": run_id, "input": given})[0][0])
    except psycopg.DatabaseError as error:
        if error.sqlstate == _CANCEL_IS_FINAL:
            raise _cancelled(run_id) from error
        raise


def _cancelled(run_id: UUID) -> RunCancelled:
    return RunCancelled(f"run {run_id} was cancelled, and cancellation is final: enqueue its input again")


def redrive_label(connection: psycopg.Connection[Any], label: str, limit: int | None = None) -> int:
    return _in_parts(connection, "redrive_label", {"label": label}, limit)


def discard(connection: psycopg.Connection[Any], run_id: UUID) -> bool:
    """Whether it had a label."""
    return bool(fetch(connection, "discard_run", {"id": run_id})[0][0])


def discard_label(connection: psycopg.Connection[Any], label: str) -> int:
    return int(fetch(connection, "discard_label", {"label": label})[0][0])


def refuse_unknown_label(connection: psycopg.Connection[Any], label: str, declared: Collection[str] = ()) -> None:
    """Raise InvalidOption for a label that no run has, no registered queue assigns, and that is not in `declared`."""
    known = known_labels(connection) | set(declared)
    if label not in known:
        raise InvalidOption(f"unknown dead-letter label {label!r}; {existing(known)}")


def known_labels(connection: psycopg.Connection[Any]) -> set[str]:
    return {label for (label,) in fetch(connection, "known_labels")}


def existing(names: Iterable[str]) -> str:
    """A list of the existing names, for a message about an unknown name."""
    named = sorted(names)
    more = f" and {len(named) - _NAMED:,} more" if len(named) > _NAMED else ""
    return f"existing: {', '.join(map(repr, named[:_NAMED]))}{more}" if named else "none exist"


def release_quarantined(connection: psycopg.Connection[Any], job: str | None, limit: int | None = None) -> int:
    return _in_parts(connection, "release_quarantined", {"job": job}, limit)


def _in_parts(
    connection: psycopg.Connection[Any], statement: str, parameters: dict[str, Any], limit: int | None
) -> int:
    """Redrive these runs in transactions of a thousand, or in the transaction that the caller has opened.

    A single statement for a million runs would exceed its role's statement_timeout at every retry.
    """
    # A run of an earlier part may have failed again by now. Without this limit it was redriven twice.
    bounded = {**parameters, "failed_until": clock(connection)}
    redriven = 0
    while _commits_alone(connection) and (limit is None or limit - redriven > _TOGETHER):
        ((part,),) = fetch(connection, statement, {**bounded, "limit": _TOGETHER})
        redriven += part
        if part < _TOGETHER:  # the last part; the remaining runs, if any, cannot be redriven
            break
    left = None if limit is None else limit - redriven
    return redriven + int(fetch(connection, statement, {**bounded, "limit": left})[0][0])


def _commits_alone(connection: psycopg.Connection[Any]) -> bool:
    return connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE


def stranded_lanes(connection: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
    """Queue, job and step of each, and since when a run waits there."""
    return [(*lane, instant(since)) for *lane, since in fetch(connection, "stranded_lanes")]
