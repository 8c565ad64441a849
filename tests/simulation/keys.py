"""Concurrency keys: who holds one, and who waits in line for it."""

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from simulation.app import Key

if TYPE_CHECKING:
    from simulation.database import Database, Row

NEVER = float("inf")


class Keys:
    """Whoever gives up a key lets in the oldest in line, unless somebody else is doing that at this moment.

    So it is told of the keys that were locked, and has to see to them again.
    """

    def __init__(self, database: "Database") -> None:
        self._database = database
        self._locked_until: dict[str, float] = {}

    def lock(self, key: str, seconds: float) -> None:
        """As somebody does who is in the middle of passing it on."""
        self._locked_until[key] = self._database.loop.time() + seconds

    def is_locked(self, key: str) -> bool:
        return self._locked_until.get(key, 0.0) > self._database.loop.time()

    def given_up_by(self, rows: Iterable["Row"]) -> list[str]:
        return self.pass_on({row.key.text for row in rows if row.holds_key and row.key is not None})

    def pass_on(self, keys: Collection[str]) -> list[str]:
        locked = []
        for key in sorted(keys):
            if self.is_locked(key):
                locked.append(key)
            else:
                self._let_in(key)
        return locked

    def join_key_queue(self, locked_before: Collection[str]) -> tuple[int, list[str]]:
        """Let runs get in line whose time has come; how many."""
        now = self._database.loop.time()
        came = [row for row in self._waiting() if row.due <= now and not self.is_locked(_text(row.key))]
        came = [row for row in came if not self._database.is_locked(row)]
        for row in came:
            row.rank, row.due = min(row.rank, row.due), NEVER
        return len(came), self.pass_on({*(_text(row.key) for row in came), *locked_before})

    def sweep(self) -> list[str]:
        """Find what nobody has passed on."""
        return self.pass_on({_text(row.key) for row in self._waiting() if row.rank < NEVER})

    def _let_in(self, key: str) -> None:
        line = sorted((row.rank, row.run) for row in self._waiting() if _text(row.key) == key and row.rank < NEVER)
        if not line:
            return
        live = self._database.live
        oldest = live[line[0][1]].key
        assert oldest is not None
        held = sum(row.holds_key and _text(row.key) == key for row in live.values())
        free = [live[run] for _, run in line if not self._database.is_locked(live[run])]
        let_in = free[: max(0, oldest.limit - held)]
        for row in let_in:
            row.state, row.holds_key, row.due = "pending", True, row.rank
        if let_in:
            self._database.notify("default")

    def _waiting(self) -> list["Row"]:
        rows = self._database.live.values()
        return [row for row in rows if row.state == "waiting" and row.key is not None and not row.holds_key]


def _text(key: Key | None) -> str:
    return "" if key is None else key.text
