"""How much of what one attempt prints and logs reaches the supervisor's log."""

import logging

OUTPUT_LIMIT = 2**20
# Of a line: what it is about, as a rule more than what it says.
_BESIDES = 100


class Allowance:
    """Counts for one attempt, until it is renewed. What is above the limit is counted and dropped.

    (A step that printed in a loop made a log of 419 MB.) From the first dropped record on all others are dropped too,
    so that there is one gap and not thousands. Warnings and errors have an eighth of the limit in reserve: the one that
    says why the step failed comes last.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._lines = 0
        self._bytes = 0
        self.used = False
        self.spent = False

    def take(self, size: int, lines: int = 1, level: int = logging.INFO) -> bool:
        """Whether a record with so much text is to be logged."""
        self.used = True
        urgent = level >= logging.WARNING
        limit = self._limit + (self._limit // 8 if urgent else 0)
        if (self.spent and not urgent) or self._taken + size + _BESIDES > limit:
            self.drop(size, lines)
            return False
        self._taken += size + _BESIDES
        return True

    def drop(self, size: int, lines: int) -> None:
        self.used = self.spent = True
        self._lines += lines
        self._bytes += size

    def renew(self) -> str:
        """For the next attempt. Returns what to say of records that were dropped, if any were."""
        said = ""
        if self.spent:
            lines = f"{self._lines:,} lines" if self._lines > 1 else "1 line"
            said = (
                f"{lines}, {_mebibytes(self._bytes)} of output dropped: "
                f"more than the {_mebibytes(self._limit)} that an attempt may print and log (--output-limit)"
            )
        self._taken = self._lines = self._bytes = 0
        self.used = self.spent = False
        return said


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
