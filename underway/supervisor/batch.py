"""How much one statement carries: less after an interruption, and slowly more again."""

from collections.abc import Iterator
from contextlib import contextmanager

from underway.postgres.session import STATEMENT_SECONDS, DatabaseAway

_LESS = 4
_MORE = 1.25
# The bound in bytes never falls below this share of the full one. A statement carries at least one row, whatever its
# size, so a smaller bound changes nothing and would only take longer to grow again.
_SMALLEST = 1 / 1024
# A statement that took so long is near its deadline, and others waited for it: the next one carries less.
_SLOW_SECONDS = STATEMENT_SECONDS / 4


class Batch:
    """The bounds of one kind of statement: in rows and, for payloads on their way, in bytes.

    A statement that was interrupted must not come again unchanged. (Claims of 900 inputs of 60 kB on a line of 3 MB/s
    hit the deadline every eleven seconds, for ever.) The next one carries a quarter; a single row, which cannot become
    smaller, is given twice the time, up to `longest` seconds.
    """

    def __init__(self, rows: int, size: int = 0, *, longest: float = STATEMENT_SECONDS) -> None:
        self._full = (rows, size)
        self._rows, self._size = float(rows), float(size)
        self._longest = longest
        self.seconds = STATEMENT_SECONDS  # that one statement may take

    @property
    def rows(self) -> int:
        return int(self._rows)

    @property
    def size(self) -> int:
        """In bytes. A row that is larger is carried alone."""
        return int(self._size)

    def interrupted(self, rows: int, size: int = 0) -> None:
        """A statement was interrupted that carried at most so much."""
        if rows <= 1:
            self.seconds = min(2 * self.seconds, self._longest)
        self._shrink(rows, size, _LESS)

    def succeeded(self, rows: int, size: int = 0, *, seconds: float = 0.0) -> None:
        """A statement has carried so much in this time. It says nothing about much larger ones if it was small."""
        self.seconds = max(STATEMENT_SECONDS, min(self.seconds, 2 * seconds))
        if seconds > _SLOW_SECONDS:
            self._shrink(rows, size, 2)
            return
        full_rows, full_size = self._full
        if rows * 2 >= self._rows:
            self._rows = min(self._rows * _MORE, full_rows)
        if size * 2 >= self._size:
            self._size = min(self._size * _MORE, full_size)

    @contextmanager
    def smaller_if_interrupted(self, rows: int, size: int = 0) -> Iterator[None]:
        """Around a statement that carries at most so much."""
        try:
            yield
        except DatabaseAway:
            self.interrupted(rows, size)
            raise

    def _shrink(self, rows: int, size: int, divisor: int) -> None:
        self._rows = max(min(self._rows, rows) / divisor, 1.0)
        self._size = max(min(self._size, size) / divisor, self._full[1] * _SMALLEST)
