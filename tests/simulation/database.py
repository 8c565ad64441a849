"""The table of live runs, its fence, its row locks, and the operations of clients.

The operations of supervisors are in one module for each file of underway/postgres/sql/statements: claims, leases,
commits, schedules. The fences are deliberately implemented a second time, as simply as possible. Every statement
takes effect at one instant.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from uuid import UUID

from simulation.app import Key, first_step, key_of
from simulation.clockwork import Clockwork
from simulation.keys import Keys
from simulation.ledger import Ledger
from underway.definition.manifest import Lane

NEVER = float("inf")
# The usual delay of a notification or a statement.
_LATENESSES_PER_SECOND = 2000


@dataclass(slots=True)
class Row:
    run: str
    lane: Lane
    input: bytes
    rank: float  # infinite: it is not in line for its key yet
    due: float  # infinite: it will be admitted when its key is released
    state: str = "pending"
    key: Key | None = None
    holds_key: bool = False
    schedule: str | None = None
    token: int = 0
    owner: UUID | None = None
    lease_expires_at: float = 0.0
    number: int = 0
    attempts: int = 0
    crashes: int = 0
    releases: int = 0
    max_crashes: int = 3
    cancel_requested: bool = False
    locked_until: float = 0.0  # by another session


class Database:
    def __init__(self, loop: Clockwork) -> None:
        self.loop = loop
        self.live: dict[str, Row] = {}
        self.ledger = Ledger(loop)
        self.keys = Keys(self)
        self.terminated: set[int] = set()  # tokens whose cx.tx transactions were terminated
        self.away_until = 0.0
        self.bytes_per_second = math.inf  # the bandwidth of each connection in each direction
        self.lossy = True
        self.listeners: list[Callable[[str], None]] = []
        self.on_reaped: Callable[[str, int], None] = lambda run, token: None
        self._tokens = itertools.count(1)
        self._names = itertools.count(1)

    def lateness(self) -> float:
        rng = self.loop.rng
        return rng.expovariate(_LATENESSES_PER_SECOND) + (rng.random() < 0.01) * rng.uniform(0, 0.5)

    def notify(self, payload: str) -> None:
        for heard in self.listeners:
            self.loop.happen(self.lateness(), lambda heard=heard: heard(payload))  # type: ignore[misc]

    # Clients

    def enqueue(self, job: str, given: bytes, count: int, delay: float = 0.0) -> None:
        for _ in range(count):
            self.insert(self.new_name(), job, first_step(job), given, delay)
        self.notify("default")

    def cancel(self, run: str) -> None:
        row = self.live[run]
        if self.is_locked(row):
            return
        self.loop.note("cancel", run, row.state)
        if row.state == "in_progress":
            row.cancel_requested = True
            self.ledger.cancel_requested(run)
            self.notify("cancel")
        else:
            self.close(row, "cancelled")
            self.keys.released_by([row])

    # Shared by the statements

    def new_name(self) -> str:
        return f"run{next(self._names):07}"

    def new_token(self) -> int:
        return next(self._tokens)

    def insert(
        self, run: str, job: str, step: str, given: bytes, delay: float = 0.0, schedule: str | None = None
    ) -> None:
        self.ledger.enqueued(run, job)
        due, key = self.loop.time() + delay, key_of(job, step, given)
        rank = NEVER if delay > 0 and key is not None else due
        state = "waiting" if delay > 0 or key is not None else "pending"
        self.live[run] = Row(run, Lane("default", job, step), given, rank, due, state, key, schedule=schedule)

    def close(self, row: Row, state: str) -> None:
        del self.live[row.run]
        self.ledger.closed(row.run, state)

    def is_locked(self, row: Row) -> bool:
        return row.locked_until > self.loop.time()

    def held(self, run: str, token: int, owner: UUID) -> Row | None:
        """The fence, except for cancelled runs."""
        row = self.live.get(run)
        if row is None or row.token != token or row.owner != owner or row.state != "in_progress":
            return None
        return None if self.is_locked(row) else row

    def owned_by(self, owner: UUID) -> Iterator[Row]:
        return (row for row in self.live.values() if row.owner == owner and row.state == "in_progress")
