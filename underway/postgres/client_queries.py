"""The queries of clients, on a sync or an async connection of any kind: enqueue, read and cancel runs."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from underway.definition.manifest import Job, Placement, Queue
from underway.errors import InvalidOption, SchemaMissing
from underway.keys import template
from underway.postgres.cursors import Json
from underway.postgres.query import QuerySteps, Statement, atomic_query, fetch, query
from underway.postgres.supervisor_store import job_parameters
from underway.text import checked_text

_COPY_CHUNK = 256 * 1024
_CHUNK_RUNS = 2000
_CHUNK_BYTES = 4 * 1024 * 1024
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class KeyedRun(NamedTuple):
    """A run to enqueue, with its keys filled in."""

    id: UUID
    payload: bytes
    unique_key: str | None
    concurrency_key: str | None


class Enqueued(NamedTuple):
    """The answer to an enqueue. `created` is False for a run that was live already under the unique key."""

    id: UUID
    created: bool


@query
def insert_run(run_id: UUID, job: str, step: str, placement: Placement, payload: bytes) -> QuerySteps[list[Enqueued]]:
    parameters = {
        "id": run_id,
        "job": job,
        "step": step,
        "queue": placement.queue,
        "priority": placement.priority,
        "keep": placement.keep,
        "delay": placement.delay.total_seconds(),
        "input": Json(payload.decode()),
    }
    yield Statement("enqueue_run", parameters)
    return [Enqueued(run_id, True)]


@atomic_query
def insert_keyed_runs(
    rows: Sequence[KeyedRun], job: str, step: str, placement: Placement
) -> QuerySteps[list[Enqueued]]:
    """Runs with keys, all of them or none. A run is not created if a live one has its unique key.

    Waits for a transaction that has enqueued one of the unique keys and is still open.
    """
    created: set[UUID] = set()
    live: dict[str, UUID] = {}
    # By key: two that enqueue the same keys in different orders would each wait for the other.
    left = sorted(rows, key=lambda row: row.unique_key or "")
    while left:
        chunk = left[: _chunk_length(left)]
        found = yield Statement("enqueue_keyed_runs", _keyed(chunk, job, step, placement))
        for run_id, key, is_new in found:
            live[key] = run_id
            if is_new:
                created.add(run_id)
        # A run that ended or was enqueued by another client during the statement is not found: look again.
        again = [row for row in chunk if row.unique_key is not None and row.unique_key not in live]
        left = again + left[len(chunk) :]
    ids = [row.id if row.unique_key is None else live[row.unique_key] for row in rows]
    return [Enqueued(run_id, run_id == row.id and run_id in created) for run_id, row in zip(ids, rows, strict=True)]


def _chunk_length(rows: Sequence[KeyedRun]) -> int:
    """The number of rows, counted from the first, that go into one statement."""
    size = 0
    for number, row in enumerate(rows[:_CHUNK_RUNS], 1):
        size += len(row.payload)
        if size > _CHUNK_BYTES:
            return number
    return min(len(rows), _CHUNK_RUNS)


def _keyed(rows: Sequence[KeyedRun], job: str, step: str, placement: Placement) -> dict[str, Any]:
    return {
        "ids": [row.id for row in rows],
        "inputs": [Json(row.payload.decode()) for row in rows],
        # Not None: where a role, a database or the caller has set array_nulls = off, it becomes the text 'NULL'.
        "unique_keys": [row.unique_key or "" for row in rows],
        "concurrency_keys": [row.concurrency_key or "" for row in rows],
        "job": job,
        "step": step,
        "queue": placement.queue,
        "priority": placement.priority,
        "keep": placement.keep,
        "delay": placement.delay.total_seconds(),
        "concurrency_limit": placement.concurrency_limit,
    }


@atomic_query
def copy_runs(
    rows: Iterable[tuple[UUID, bytes]], job: str, step: str, placement: Placement, in_one: bool
) -> QuerySteps[list[Enqueued]]:
    """Many runs at once by COPY: all of them or none.

    With `in_one`, a single COPY sends the rows, so the client produces rows while the server writes earlier ones; that
    is half as fast again. The code that produces the values must then not use this connection (see Statement). Without
    it, each chunk is a COPY of its own, and that code may use the connection.
    """
    options = {"delay": placement.delay.total_seconds(), "priority": placement.priority}
    ((state, due_at, rank),) = yield Statement("placement", options)
    columns = _constant_columns(job, step, placement, state, instant(due_at), instant(rank))
    copied: list[UUID] = []
    chunks = _copy_chunks(rows, columns, copied)
    for lines in [chunks] if in_one else ([chunk] for chunk in chunks):
        yield Statement("copy_runs", lines=lines)
    yield Statement("wake_supervisors", {"queue": placement.queue})
    return [Enqueued(run_id, True) for run_id in copied]


def _constant_columns(job: str, step: str, placement: Placement, state: str, due_at: datetime, rank: datetime) -> bytes:
    columns = (
        _copy_text(job),
        _copy_text(step),
        _copy_text(placement.queue),
        str(placement.priority),
        f"{placement.keep.total_seconds()} seconds",
        due_at.isoformat(),
        rank.isoformat(),
        state,
    )
    return ("\t".join(columns) + "\n").encode()


def _copy_chunks(rows: Iterable[tuple[UUID, bytes]], tail: bytes, copied: list[UUID]) -> Iterator[bytes]:
    """Lines of COPY's text format. JSON has no raw tabs or line ends, so only its backslashes need escaping.

    The IDs of the rows are added to `copied`.
    """
    lines: list[bytes] = []
    size = 0
    for run_id, payload in rows:
        copied.append(run_id)
        line = b"\t".join((run_id.hex.encode(), payload.replace(b"\\", b"\\\\"), tail))
        lines.append(line)
        size += len(line)
        if size > _COPY_CHUNK:
            yield b"".join(lines)
            lines, size = [], 0
    yield b"".join(lines)


def _copy_text(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


@query
def status(run_id: UUID) -> QuerySteps[str | None]:
    """The state of a run; None if no run has this ID."""
    rows = yield Statement("run_status", {"id": run_id})
    return rows[0][0] if rows else None


@query
def outcome(run_id: UUID) -> QuerySteps[tuple[str, str | None, str | None] | None]:
    """(state, result, error) of a finished run; None while it is live."""
    rows = yield Statement("run_outcome", {"id": run_id})
    return rows[0] if rows else None


@query
def job_of(run_id: UUID) -> QuerySteps[str | None]:
    """The name of a run's job; None if no run has this ID."""
    rows = yield Statement("run_job", {"id": run_id})
    return rows[0][0] if rows else None


class AttemptRow(NamedTuple):
    """An attempt that has ended, as it was recorded."""

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


@query
def attempts(run_id: UUID) -> QuerySteps[list[AttemptRow]]:
    """The attempts of a run in the order in which they were made."""
    rows = yield Statement("run_attempts", {"id": run_id})
    return [
        AttemptRow(step, number, outcome, error, instant(started), instant(finished), *rest)
        for step, number, outcome, error, started, finished, *rest in rows
    ]


@query
def cancel(run_id: UUID) -> QuerySteps[bool]:
    """Whether this call cancelled the run: it was live and had not been cancelled before."""
    ((cancelled,),) = yield Statement("cancel_run", {"id": run_id})
    return bool(cancelled)


@query
def cancel_job(job: str) -> QuerySteps[int]:
    """The number of runs that this call cancelled."""
    ((number,),) = yield Statement("cancel_job", {"job": job})
    return int(number)


@query
def cancel_key(
    job: str, *, unique_key: str | None = None, concurrency_key: str | None = None, elsewhere: Collection[str] = ()
) -> QuerySteps[int]:
    """Cancel the runs with this unique or concurrency key, and return the number that this call cancelled.

    `elsewhere` are the steps at which a run has another concurrency key, or none. Raises InvalidOption if it is not
    empty, because the runs at these steps cannot be matched with the key.
    """
    if (unique_key is None) == (concurrency_key is None):
        raise InvalidOption("cancel by unique_key= or by concurrency_key=, one of them")
    for option, key in (("unique_key", unique_key), ("concurrency_key", concurrency_key)):
        if key is not None:
            checked_text(option, key, template.LONGEST)
    if unique_key is not None:
        ((number,),) = yield Statement("cancel_key", {"job": job, "unique_key": unique_key})
        return int(number)
    if elsewhere:
        rows = yield Statement("live_by_step", {"job": job})
        left = sum(number for step, number, _keyed in rows if step in elsewhere)
        raise InvalidOption(
            f"cancel(concurrency_key={concurrency_key!r}) does not cover job {job!r}: a run at step "
            f"{', '.join(map(repr, elsewhere))} has another concurrency key or none, and would go on ({left:,} live "
            f"runs stand there now). Give each step the same concurrency_key=, or cancel by unique_key=, by id, or all "
            f"of the job. underway.cancel_concurrency_key in SQL cancels the runs that have the key at this moment"
        )
    ((number,),) = yield Statement("cancel_concurrency_key", {"job": job, "concurrency_key": concurrency_key})
    return int(number)


@query
def without_key(job: str) -> QuerySteps[dict[str, int]]:
    """The number of live runs of a job without a concurrency key, by their current step."""
    rows = yield Statement("live_by_step", {"job": job})
    return {step: number - keyed for step, number, keyed in rows if number > keyed}


@atomic_query
def register_app(jobs: Collection[Job], queues: Collection[Queue]) -> QuerySteps[None]:
    """Register jobs and queues, all of them in one transaction."""
    # By name: deployments of code that names them in different orders would wait for each other.
    for job in sorted(jobs, key=lambda job: job.name):
        yield Statement("register_job", job_parameters(job.name, job.steps[0].name, job.steps[0].placement))
    for queue in sorted(queues, key=lambda queue: queue.name):
        yield Statement("register_queue", {"name": queue.name, "dead_letter": queue.dead_letter})


@query
def clock() -> QuerySteps[datetime]:
    """The database's time, by which all instants are compared."""
    ((now,),) = yield Statement("clock")
    at: datetime = instant(now)
    return at


def applied_migrations(connection: psycopg.Connection[Any]) -> dict[int, int] | None:
    """The versions that this database has, each with the oldest code that it allows; None without our schema."""
    try:
        with connection.transaction():
            return dict(fetch(connection, "applied_migrations"))
    except SchemaMissing:
        return None


# Instants travel as microseconds, because the caller's connection may have any DateStyle.


def instant(microseconds: Any) -> Any:
    return None if microseconds is None else _EPOCH + timedelta(microseconds=microseconds)


def microseconds(instant: datetime) -> int:
    return (instant - _EPOCH) // timedelta(microseconds=1)
