"""sql/statements/claims.sql: promotion and claims."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from simulation.database import NEVER, Database
from underway.postgres.supervisor_store import Claimed, Lanes


def claim(
    database: Database,
    owner: UUID,
    lanes: Lanes,
    tasks: int,
    candidates: int,
    suspects: int,
    size: int,
    from_start: bool,
    carry: Callable[[int], None],
) -> list[tuple[Claimed, int, float]]:
    """The claimed runs, each with the number of its lane and its rank."""
    columns: Any = lanes.columns(from_start=from_start)
    number = {lane: n for n, lane in enumerate(lanes.lanes)}
    clean: list[list[tuple[float, str]]] = [[] for _ in number]
    suspected: list[list[tuple[float, str]]] = [[] for _ in number]
    for row in database.live.values():
        if row.state == "pending" and (n := number.get(row.lane)) is not None:
            if row.crashes:
                suspected[n].append((row.rank, row.run))
            elif (row.rank, row.run) > (columns["cursors"][n], columns["cursor_ids"][n]):
                clean[n].append((row.rank, row.run))
    chosen = [*_first(clean, candidates), *_first(suspected, suspects)]
    taken = [(rank, row) for rank, run in sorted(chosen) if not database.is_locked(row := database.live[run])][:tasks]
    while len(taken) > 1 and sum(len(row.input) for _, row in taken) > size:
        taken.pop()
    carry(sum(len(row.input) for _, row in taken))
    claimed: list[tuple[Claimed, int, float]] = []
    for rank, row in taken:
        n = number[row.lane]
        row.state, row.owner, row.token = "in_progress", owner, database.new_token()
        row.lease_expires_at = database.loop.time() + columns["leases"][n]
        row.max_crashes = columns["max_crashes"][n]
        counters = row.number, row.attempts, row.crashes, row.releases
        claimed.append((Claimed(row.run, row.token, row.lane, *counters, None, row.input, row.holds_key), n, rank))
    return claimed


def _first(lanes: list[list[tuple[float, str]]], most: int) -> list[tuple[float, str]]:
    """The first ones of each lane, and then the first ones of these."""
    return sorted(row for lane in lanes for row in sorted(lane)[:most])[:most]


def promote(database: Database) -> int:
    now = database.loop.time()
    due = [row for row in database.live.values() if row.state == "waiting" and row.due <= now]
    free = [row for row in due if (row.key is None or row.holds_key) and not database.is_locked(row)]
    for row in free:
        row.state = "pending"
    if free:
        database.notify("default")
    return len(free)


def due_at(database: Database) -> float | None:
    first = min((row.due for row in database.live.values() if row.state == "waiting"), default=NEVER)
    return None if first == NEVER else first
