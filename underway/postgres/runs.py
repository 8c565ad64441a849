"""What a client asks of Postgres, on any psycopg connection, sync or async: enqueue, look, cancel."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg

from underway.errors import SchemaMissing
from underway.manifest import Placement
from underway.postgres.asking import Asking, Statement, atomic_question, fetch, question
from underway.postgres.store import job_parameters

_COPY_CHUNK = 256 * 1024
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@question
def insert_run(run_id: UUID, job: str, step: str, placement: Placement, payload: bytes) -> Asking[None]:
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
    yield Statement("enqueue_run", parameters)


@atomic_question
def copy_runs(runs: Iterable[tuple[UUID, bytes]], job: str, step: str, placement: Placement) -> Asking[None]:
    """Many runs at once by COPY: all of them or none."""
    ((microseconds,),) = yield Statement("clock")
    columns = _constant_columns(instant(microseconds), job, step, placement)
    yield Statement("copy_runs", lines=_copy_chunks(runs, columns))
    yield Statement("wake_supervisors", {"queue": placement.queue})


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


@question
def status(run_id: UUID) -> Asking[str | None]:
    """The state of a run; None if there is no such run."""
    rows = yield Statement("run_status", {"id": run_id})
    return rows[0][0] if rows else None


@question
def outcome(run_id: UUID) -> Asking[tuple[str, str | None, str | None] | None]:
    """(state, result, error) of a finished run; None while it is live."""
    rows = yield Statement("run_outcome", {"id": run_id})
    return rows[0] if rows else None


@question
def job_of(run_id: UUID) -> Asking[str | None]:
    rows = yield Statement("run_job", {"id": run_id})
    return rows[0][0] if rows else None


@question
def attempts(run_id: UUID) -> Asking[list[tuple[Any, ...]]]:
    """Step, number, outcome, error, start, end, host, pid, CPU seconds, peak bytes of each."""
    rows = yield Statement("run_attempts", {"id": run_id})
    return [
        (step, number, outcome, error, instant(started), instant(finished), *rest)
        for step, number, outcome, error, started, finished, *rest in rows
    ]


@question
def cancel(run_id: UUID) -> Asking[bool]:
    """Whether this call cancelled it: it was live, and nobody had cancelled it before."""
    ((cancelled,),) = yield Statement("cancel_run", {"id": run_id})
    return bool(cancelled)


@question
def cancel_job(job: str) -> Asking[int]:
    """How many runs this call cancelled."""
    ((number,),) = yield Statement("cancel_job", {"job": job})
    return int(number)


@question
def cancel_key(job: str, unique_key: str) -> Asking[int]:
    ((number,),) = yield Statement("cancel_key", {"job": job, "unique_key": unique_key})
    return int(number)


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
