"""What a client asks of Postgres, on any psycopg connection: enqueue, look, cancel."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from underway.errors import SchemaMissing
from underway.manifest import Placement
from underway.postgres.queries import statements
from underway.postgres.store import job_parameters

_COPY_CHUNK = 256 * 1024
_CHUNK_RUNS = 2000
_CHUNK_BYTES = 4 * 1024 * 1024
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class KeyedRun(NamedTuple):
    """A run to be, its keys filled in."""

    id: UUID
    payload: bytes
    unique_key: str | None
    concurrency_key: str | None


def insert_run(
    connection: psycopg.Connection[Any], run_id: UUID, job: str, step: str, placement: Placement, payload: bytes
) -> None:
    parameters = {
        "id": run_id,
        "job": job,
        "step": step,
        "queue": placement.queue,
        "priority": placement.priority,
        "keep": placement.keep,
        "delay": placement.delay.total_seconds(),
        "input": payload.decode(),
    }
    fetch(connection, "enqueue_run", parameters)


def insert_keyed_runs(
    connection: psycopg.Connection[Any], rows: Sequence[KeyedRun], job: str, step: str, placement: Placement
) -> list[tuple[UUID, bool]]:
    """Runs with keys, all of them or none: (id, created) of each, not created where a live one had its unique key.

    Waits for a transaction that has enqueued one of the unique keys and is still open.
    """
    created: set[UUID] = set()
    live: dict[str, UUID] = {}
    # By key: two that enqueue the same keys in different orders would each wait for the other.
    left = sorted(rows, key=lambda row: row.unique_key or "")
    with _all_or_nothing(connection):
        while left:
            chunk = left[: _chunk_length(left)]
            for run_id, key, is_new in fetch(connection, "enqueue_keyed_runs", _keyed(chunk, job, step, placement)):
                live[key] = run_id
                if is_new:
                    created.add(run_id)
            # A run that ended, or was enqueued by somebody else, while we looked is not found: look again.
            again = [row for row in chunk if row.unique_key is not None and row.unique_key not in live]
            left = again + left[len(chunk) :]
    ids = [row.id if row.unique_key is None else live[row.unique_key] for row in rows]
    return [(run_id, run_id == row.id and run_id in created) for run_id, row in zip(ids, rows, strict=True)]


def _chunk_length(rows: Sequence[KeyedRun]) -> int:
    """How many of these go into one statement."""
    size = 0
    for number, row in enumerate(rows[:_CHUNK_RUNS], 1):
        size += len(row.payload)
        if size > _CHUNK_BYTES:
            return number
    return min(len(rows), _CHUNK_RUNS)


def _keyed(rows: Sequence[KeyedRun], job: str, step: str, placement: Placement) -> dict[str, Any]:
    return {
        "ids": [row.id for row in rows],
        "inputs": [row.payload.decode() for row in rows],
        "unique_keys": [row.unique_key for row in rows],
        "concurrency_keys": [row.concurrency_key for row in rows],
        "job": job,
        "step": step,
        "queue": placement.queue,
        "priority": placement.priority,
        "keep": placement.keep,
        "delay": placement.delay.total_seconds(),
        "key_limit": placement.concurrency_limit,
    }


def copy_runs(
    connection: psycopg.Connection[Any],
    runs: Iterable[tuple[UUID, bytes]],
    job: str,
    step: str,
    placement: Placement,
) -> None:
    """Many runs at once by COPY, inside a transaction of the connection's: all of them or none."""
    with _all_or_nothing(connection):
        ((microseconds,),) = fetch(connection, "clock")
        now = instant(microseconds)
        with _cursor(connection) as cursor, cursor.copy(statements()["copy_runs"]) as copy:
            for chunk in _copy_chunks(runs, _constant_columns(now, job, step, placement)):
                copy.write(chunk)
        fetch(connection, "wake_supervisors", {"queue": placement.queue})


def _constant_columns(now: datetime, job: str, step: str, placement: Placement) -> bytes:
    due = now + placement.delay
    rank = due - placement.priority * timedelta(minutes=1)
    columns = (
        _copy_text(job),
        _copy_text(step),
        _copy_text(placement.queue),
        str(placement.priority),
        f"{placement.keep.total_seconds()} seconds",
        due.isoformat(),
        rank.isoformat(),
        "waiting" if placement.delay > timedelta(0) else "pending",
    )
    return ("\t".join(columns) + "\n").encode()


def _copy_chunks(runs: Iterable[tuple[UUID, bytes]], tail: bytes) -> Iterator[bytes]:
    """Lines of COPY's text format; JSON has no raw tabs or line ends, so only its backslashes need escaping."""
    lines: list[bytes] = []
    size = 0
    for run_id, payload in runs:
        line = b"\t".join((run_id.hex.encode(), payload.replace(b"\\", b"\\\\"), tail))
        lines.append(line)
        size += len(line)
        if size > _COPY_CHUNK:
            yield b"".join(lines)
            lines, size = [], 0
    yield b"".join(lines)


def _copy_text(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def status(connection: psycopg.Connection[Any], run_id: UUID) -> str | None:
    """The state of a run; None if there is no such run."""
    rows = fetch(connection, "run_status", {"id": run_id})
    return rows[0][0] if rows else None


def outcome(connection: psycopg.Connection[Any], run_id: UUID) -> tuple[str, str | None, str | None] | None:
    """(state, result, error) of a finished run; None while it is live."""
    rows = fetch(connection, "run_outcome", {"id": run_id})
    return rows[0] if rows else None


def job_of(connection: psycopg.Connection[Any], run_id: UUID) -> str | None:
    rows = fetch(connection, "run_job", {"id": run_id})
    return rows[0][0] if rows else None


def attempts(connection: psycopg.Connection[Any], run_id: UUID) -> list[tuple[Any, ...]]:
    """Step, number, outcome, error, start, end, host, pid, CPU seconds, peak bytes of each."""
    return [
        (step, number, outcome, error, instant(started), instant(finished), *rest)
        for step, number, outcome, error, started, finished, *rest in fetch(connection, "run_attempts", {"id": run_id})
    ]


def cancel(connection: psycopg.Connection[Any], run_id: UUID) -> bool:
    """Whether this call cancelled it: it was live, and nobody had cancelled it before."""
    return bool(fetch(connection, "cancel_run", {"id": run_id})[0][0])


def cancel_job(connection: psycopg.Connection[Any], job: str) -> int:
    """How many runs this call cancelled."""
    return int(fetch(connection, "cancel_job", {"job": job})[0][0])


def cancel_key(connection: psycopg.Connection[Any], job: str, unique_key: str) -> int:
    return int(fetch(connection, "cancel_key", {"job": job, "unique_key": unique_key})[0][0])


def register_job(connection: psycopg.Connection[Any], name: str, step: str, placement: Placement) -> None:
    fetch(connection, "register_job", job_parameters(name, step, placement))


def applied_migrations(connection: psycopg.Connection[Any]) -> dict[int, int] | None:
    """Versions that this database has, and the oldest code each allows; None without our schema."""
    try:
        with connection.transaction():
            return dict(fetch(connection, "applied_migrations"))
    except SchemaMissing:
        return None


@contextmanager
def _all_or_nothing(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """A transaction of our own, or a savepoint in the caller's.

    A caller whose connection is not in autocommit mode means to commit, also where our statement is the first; psycopg
    would take a transaction begun here for ours and commit it.
    """
    if not connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE:
        fetch(connection, "clock")
    with connection.transaction():
        yield


def instant(microseconds: Any) -> Any:
    return None if microseconds is None else _EPOCH + timedelta(microseconds=microseconds)


def fetch(connection: psycopg.Connection[Any], name: str, parameters: Any = None) -> list[tuple[Any, ...]]:
    """Rows of a named statement, whatever row factory the caller's connection has. Never prepared: see Session."""
    try:
        with _cursor(connection) as cursor:
            cursor.execute(statements()[name], parameters, prepare=False)
            return cursor.fetchall() if cursor.description else []
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
        raise SchemaMissing from error


def _cursor(connection: psycopg.Connection[Any]) -> psycopg.Cursor[tuple[Any, ...]]:
    return psycopg.Cursor(connection, row_factory=tuple_row)
