"""Limits how much output and how many log records of one attempt reach the supervisor's log."""

import logging

from underway.text import mebibytes

OUTPUT_LIMIT = 2**20
# Estimated size of a log line without its message: timestamp, run, job, step and so on.
_BESIDES = 100


class OutputQuota:
    """The output quota of one attempt, until it is renewed. Output beyond the limit is counted and dropped.

    (A step that printed in a loop produced a log of 419 MB.) After the first dropped record, all later output is
    dropped too, so that the log has one gap instead of thousands. Warnings and errors have a reserve of an eighth of
    the limit, because the record that says why the step failed comes last.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._lines = 0
        self._bytes = 0
        self.used = False
        self.over_limit = False

    def take(self, size: int, lines: int = 1, level: int = logging.INFO) -> bool:
        """Whether to log a record of this size. If not, it is counted as dropped."""
        self.used = True
        urgent = level >= logging.WARNING
        limit = self._limit + (self._limit // 8 if urgent else 0)
        if (self.over_limit and not urgent) or self._taken + size + _BESIDES > limit:
            self.drop(size, lines)
            return False
        self._taken += size + _BESIDES
        return True

    def drop(self, size: int, lines: int) -> None:
        self.used = self.over_limit = True
        self._lines += lines
        self._bytes += size

    def renew(self) -> str:
        """Reset for the next attempt. Returns a message about dropped output, or an empty string."""
        said = ""
        if self.over_limit:
            lines = f"{self._lines:,} lines" if self._lines > 1 else "1 line"
            said = (
                f"{lines}, {mebibytes(self._bytes, 1)} of output dropped: "
                f"more than the {mebibytes(self._limit, 1)} that an attempt may print and log (--output-limit)"
            )
        self._taken = self._lines = self._bytes = 0
        self.used = self.over_limit = False
        return said
