"""What a client asks of Postgres, on any psycopg connection: enqueue, look, cancel."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import tuple_row

from underway.errors import SchemaMissing
from underway.manifest import Placement
from underway.postgres.queries import statements
from underway.postgres.store import job_parameters

_COPY_CHUNK = 256 * 1024
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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


def copy_runs(
    connection: psycopg.Connection[Any],
    runs: Iterable[tuple[UUID, bytes]],
    job: str,
    step: str,
    placement: Placement,
) -> None:
    """Many runs at once by COPY, inside a transaction of the connection's: all of them or none."""
    with connection.transaction():
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
