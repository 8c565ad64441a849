"""Adapts the size of a batch: smaller after an interrupted statement, then slowly larger again."""

from collections.abc import Iterator
from contextlib import contextmanager

from underway.postgres.reconnecting import STATEMENT_SECONDS, DatabaseUnavailable

_LESS = 4
_MORE = 1.25
# The byte limit never falls below this share of its maximum. A statement carries at least one row, whatever its size,
# so a smaller limit would change nothing and would only take longer to grow again.
_SMALLEST = 1 / 1024
# A statement that took longer is too close to its deadline, and others waited for it: the next one carries less.
_SLOW_SECONDS = STATEMENT_SECONDS / 4


class AdaptiveBatch:
    """The limits of one kind of statement: in rows and, where payloads are transferred, in bytes.

    An interrupted statement must not be retried unchanged. (Claims of 900 inputs of 60 kB over a 3 MB/s network hit the
    deadline every eleven seconds, forever.) The next one carries a quarter. A single row cannot be split, so it gets
    twice the time, up to `longest` seconds.
    """

    def __init__(self, rows: int, size: int = 0, *, longest: float = STATEMENT_SECONDS) -> None:
        self._full = (rows, size)
        self._rows, self._size = float(rows), float(size)
        self._longest = longest
        self.seconds = STATEMENT_SECONDS  # the timeout of one statement

    @property
    def rows(self) -> int:
        return int(self._rows)

    @property
    def size(self) -> int:
        """The limit in bytes. A larger row is sent alone."""
        return int(self._size)

    def interrupted(self, rows: int, size: int = 0) -> None:
        """Shrink: a statement of at most this size was interrupted."""
        if rows <= 1:
            self.seconds = min(2 * self.seconds, self._longest)
        self._shrink(rows, size, _LESS)

    def succeeded(self, rows: int, size: int = 0, *, seconds: float = 0.0) -> None:
        """Record a completed statement. A limit grows only if the statement used at least half of it."""
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
        """Run a statement of at most this size; shrink if it is interrupted."""
        try:
            yield
        except DatabaseUnavailable:
            self.interrupted(rows, size)
            raise

    def _shrink(self, rows: int, size: int, divisor: int) -> None:
        self._rows = max(min(self._rows, rows) / divisor, 1.0)
        self._size = max(min(self._size, size) / divisor, self._full[1] * _SMALLEST)
