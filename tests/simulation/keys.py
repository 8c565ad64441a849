"""Concurrency keys: which runs hold one, and which wait in line for it."""

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from simulation.app import Key

if TYPE_CHECKING:
    from simulation.database import Database, Row

NEVER = float("inf")


class Keys:
    """A statement that releases a key grants it to the oldest run in line, unless another session has locked the key.

    It returns the locked keys, which have to be granted later.
    """

    def __init__(self, database: "Database") -> None:
        self._database = database
        self._locked_until: dict[str, float] = {}

    def lock(self, key: str, seconds: float) -> None:
        """Lock the key, as a session does that is granting it."""
        self._locked_until[key] = self._database.loop.time() + seconds

    def is_locked(self, key: str) -> bool:
        return self._locked_until.get(key, 0.0) > self._database.loop.time()

    def released_by(self, rows: Iterable["Row"]) -> list[str]:
        return self.grant({row.key.text for row in rows if row.holds_key and row.key is not None})

    def grant(self, keys: Collection[str]) -> list[str]:
        locked = []
        for key in sorted(keys):
            if self.is_locked(key):
                locked.append(key)
            else:
                self._admit(key)
        return locked

    def join_key_queue(self, locked_before: Collection[str]) -> tuple[int, list[str]]:
        """Put due runs in line. Returns their number and the locked keys."""
        now = self._database.loop.time()
        came = [row for row in self._waiting() if row.due <= now and not self.is_locked(_text(row.key))]
        came = [row for row in came if not self._database.is_locked(row)]
        for row in came:
            row.rank, row.due = min(row.rank, row.due), NEVER
        return len(came), self.grant({*(_text(row.key) for row in came), *locked_before})

    def sweep(self) -> list[str]:
        """Grant keys that were left free."""
        return self.grant({_text(row.key) for row in self._waiting() if row.rank < NEVER})

    def _admit(self, key: str) -> None:
        line = sorted((row.rank, row.run) for row in self._waiting() if _text(row.key) == key and row.rank < NEVER)
        if not line:
            return
        live = self._database.live
        oldest = live[line[0][1]].key
        assert oldest is not None
        held = sum(row.holds_key and _text(row.key) == key for row in live.values())
        free = [live[run] for _, run in line if not self._database.is_locked(live[run])]
        admitted = free[: max(0, oldest.limit - held)]
        for row in admitted:
            row.state, row.holds_key, row.due = "pending", True, row.rank
        if admitted:
            self._database.notify("default")

    def _waiting(self) -> list["Row"]:
        rows = self._database.live.values()
        return [row for row in rows if row.state == "waiting" and row.key is not None and not row.holds_key]


def _text(key: Key | None) -> str:
    return "" if key is None else key.text
