"""The queries of administration, on a sync or an async connection of any kind: queues, dead letters, supervisors."""

from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from underway.errors import InvalidOption, RunCancelled
from underway.postgres import inspection
from underway.postgres.client_queries import clock, instant
from underway.postgres.cursors import Json
from underway.postgres.query import COMMITS_EACH_STATEMENT, QuerySteps, Statement, query

_CANCEL_IS_FINAL = "UW004"
_PART = 1000
_MAX_NAMES = 10

# Queues


class PausedQueue(NamedTuple):
    """`changed` says whether the queue was not paused before. `others` are the known queues if this one is unknown."""

    changed: bool
    others: set[str] | None


@query
def pause(queue: str) -> QuerySteps[bool]:
    """Whether the queue was not paused before."""
    ((changed,),) = yield Statement("pause_queue", {"queue": queue})
    return bool(changed)


@query
def pause_any(queue: str, declared: Collection[str]) -> QuerySteps[PausedQueue]:
    """Pause a queue that may be misspelled. An app's `declared` queues are known before the database knows them."""
    others: set[str] | None = None
    if queue not in declared and not (yield from inspection.knows_queue.steps(queue)):
        others = (yield from inspection.known_queues.steps()) | set(declared)
    return PausedQueue((yield from pause.steps(queue)), others)


@query
def resume(queue: str) -> QuerySteps[bool]:
    """Whether the queue was paused before."""
    ((changed,),) = yield Statement("resume_queue", {"queue": queue})
    return bool(changed)


# Supervisors


@query
def shut_down(supervisor: UUID | None = None) -> QuerySteps[list[UUID]]:
    """Ask one supervisor, or all, to stop as SIGTERM does. Returns the supervisors asked."""
    return [id_ for (id_,) in (yield Statement("shut_down", {"supervisor": supervisor}))]


@query
def present(supervisors: Iterable[UUID]) -> QuerySteps[list[UUID]]:
    """Which of these supervisors have not left yet. A killed one is absent after half a minute."""
    return [id_ for (id_,) in (yield Statement("present_supervisors", {"ids": list(supervisors)}))]


@query
def stranded_lanes() -> QuerySteps[list[tuple[Any, ...]]]:
    """Queue, job and step of each lane that no supervisor serves, and since when a run waits there."""
    return [(*lane, instant(since)) for *lane, since in (yield Statement("stranded_lanes"))]


# Dead letters


@query
def failed_step(run_id: UUID) -> QuerySteps[tuple[str, str] | None]:
    """(job, step) at which a run has failed; None if it has not. Raises RunCancelled."""
    for job, step, state in (yield Statement("failed_step", {"id": run_id})):
        if state == "cancelled":
            raise _cancelled(run_id)
        return job, step
    return None


@query
def redrive(run_id: UUID, payload: bytes | None = None) -> QuerySteps[bool]:
    """Whether the run goes on: it had failed, and no other run is live under its unique key. Raises RunCancelled."""
    given = None if payload is None else Json(payload.decode())
    try:
        ((redriven,),) = yield Statement("redrive_run", {"id": run_id, "input": given})
    except psycopg.DatabaseError as error:
        if error.sqlstate == _CANCEL_IS_FINAL:
            raise _cancelled(run_id) from error
        raise
    return bool(redriven)


@query
def redrive_failed(run_id: UUID, encode_input: Callable[[str, str], bytes] | None) -> QuerySteps[int]:
    """Redrive a run if it has failed. `encode_input` makes another input for its (job, step)."""
    # The state is read first: the refusal of a cancelled run in SQL would abort the caller's transaction.
    failed = yield from failed_step.steps(run_id)
    if failed is None:
        return 0
    payload = None if encode_input is None else encode_input(*failed)
    return int((yield from redrive.steps(run_id, payload)))


@query
def redrive_label(label: str, limit: int | None = None) -> QuerySteps[int]:
    """Redrive all runs with this label, or the oldest `limit` of them. Returns the number of runs redriven."""
    return (yield from _redrive_in_parts("redrive_label", {"label": label}, limit))


@query
def redrive_known_label(label: str, limit: int | None, declared: Collection[str]) -> QuerySteps[int]:
    """Like `redrive_label`. Raises InvalidOption for an unknown label."""
    redriven = yield from redrive_label.steps(label, limit)
    if not redriven:
        yield from refuse_unknown_label.steps(label, declared)
    return redriven


@query
def release_quarantined(job: str | None, limit: int | None = None) -> QuerySteps[int]:
    """Redrive the quarantined runs of one job or all, or the oldest `limit` of them. Returns their number."""
    return (yield from _redrive_in_parts("release_quarantined", {"job": job}, limit))


def _redrive_in_parts(statement: str, parameters: dict[str, Any], limit: int | None) -> QuerySteps[int]:
    """Redrive these runs in transactions of a thousand, or in the transaction that the caller has opened.

    A single statement for a million runs would exceed its role's statement_timeout at every retry.
    """
    ((commits_alone,),) = yield COMMITS_EACH_STATEMENT
    # A run of an earlier part may have failed again by now. Without this limit it was redriven twice.
    bounded = {**parameters, "failed_until": (yield from clock.steps())}
    redriven = 0
    while commits_alone and (limit is None or limit - redriven > _PART):
        ((part,),) = yield Statement(statement, {**bounded, "limit": _PART})
        redriven += part
        if part < _PART:  # the last part; the remaining runs, if any, cannot be redriven
            break
    left = None if limit is None else limit - redriven
    ((rest,),) = yield Statement(statement, {**bounded, "limit": left})
    return redriven + int(rest)


@query
def discard(run_id: UUID) -> QuerySteps[bool]:
    """Whether the run had a label."""
    ((discarded,),) = yield Statement("discard_run", {"id": run_id})
    return bool(discarded)


@query
def discard_label(label: str) -> QuerySteps[int]:
    """The number of runs that had this label."""
    ((discarded,),) = yield Statement("discard_label", {"label": label})
    return int(discarded)


@query
def discard_known_label(label: str, declared: Collection[str]) -> QuerySteps[int]:
    """Like `discard_label`. Raises InvalidOption for an unknown label."""
    discarded = yield from discard_label.steps(label)
    if not discarded:
        yield from refuse_unknown_label.steps(label, declared)
    return discarded


@query
def refuse_unknown_label(label: str, declared: Collection[str] = ()) -> QuerySteps[None]:
    """Raise InvalidOption for a label that no run has, no registered queue assigns, and that is not in `declared`."""
    known = (yield from known_labels.steps()) | set(declared)
    if label not in known:
        raise InvalidOption(f"unknown dead-letter label {label!r}; {existing(known)}")


@query
def known_labels() -> QuerySteps[set[str]]:
    """The labels that runs have or registered queues assign."""
    return {label for (label,) in (yield Statement("known_labels"))}


def existing(names: Iterable[str]) -> str:
    """A list of the existing names, for a message about an unknown name."""
    named = sorted(names)
    more = f" and {len(named) - _MAX_NAMES:,} more" if len(named) > _MAX_NAMES else ""
    return f"existing: {', '.join(map(repr, named[:_MAX_NAMES]))}{more}" if named else "none exist"


def _cancelled(run_id: UUID) -> RunCancelled:
    return RunCancelled(f"run {run_id} was cancelled, and cancellation is final: enqueue its input again")
