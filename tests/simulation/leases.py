"""sql/statements/leases.sql: renewing, reaping and releasing runs."""

from collections.abc import Iterable
from uuid import UUID

from simulation.database import Database, Row
from underway.postgres.supervisor_store import Renewal


def renew(database: Database, owner: UUID, renewals: Iterable[Renewal]) -> set[str]:
    renewed = set()
    for run, token, lease, _progress in renewals:
        row = database.held(run, token, owner)
        if row is not None and not row.cancel_requested:
            row.lease_expires_at = database.loop.time() + lease
            renewed.add(run)
    return renewed


def reap(database: Database, expired_by: float | None) -> tuple[list[tuple[str, int, str | None]], list[str]]:
    now = database.loop.time()
    by = now if expired_by is None else expired_by
    expired = [row for row in database.live.values() if row.state == "in_progress" and row.lease_expires_at < by]
    reaped, gone = [], []
    for row in expired:
        if database.is_locked(row):
            continue
        database.loop.note("reaped", row.run, row.token)
        database.on_reaped(row.run, row.token)
        final = _final_state(row)
        outcome = "cancelled" if final == "cancelled" else "lost"
        database.ledger.write(row.run, row.lane.step, row.token, outcome)
        reaped.append((row.run, row.token, final))
        if final is not None:
            database.close(row, final)
            gone.append(row)
            continue
        row.crashes, row.number = row.crashes + 1, row.number + 1
        row.state, row.owner = "waiting", None
        row.due = row.rank = now + min(60, 2 ** (row.crashes - 1))
    return reaped, database.keys.released_by(gone)


def _final_state(row: Row) -> str | None:
    if row.cancel_requested:
        return "cancelled"
    return "failed" if row.crashes > 0 and row.crashes + 1 >= row.max_crashes else None


def claimed(database: Database, owner: UUID) -> list[tuple[str, int]]:
    return [(row.run, row.token) for row in database.owned_by(owner) if not row.cancel_requested]


def release_unknown(database: Database, owner: UUID, unknown: Iterable[tuple[str, int]]) -> None:
    for run, token in unknown:
        row = database.held(run, token, owner)
        if row is not None and not row.cancel_requested:
            database.loop.note("released unknown", run, token)
            database.ledger.released(token, "as unknown")
            row.state, row.owner, row.releases = "pending", None, row.releases + 1


def cancel_requests(database: Database, owner: UUID) -> list[tuple[str, int, int, int]]:
    rows = database.owned_by(owner)
    return [(row.run, row.token, row.attempts, row.crashes) for row in rows if row.cancel_requested]
