"""Limits how much of the supervisor's time the messages and the output of one worker take."""

import time

from underway.wire import messages

# With this many tasks in a worker's hands, pause reading: waking up per result competed with the worker for CPU.
_PLENTY = 8
_PAUSE_SECONDS = 0.001
# Output and log records cost time to read: 64 workers that flooded at once kept the supervisor's event loop in one turn
# for seconds, and leases expired. If all workers wrote as much as this one just did, a turn may take this long. If it
# would take longer, this worker is not read for twice that time, which leaves the supervisor half of its own time.
OUTPUT_MESSAGES = frozenset((messages.Log, messages.Progress))
_ROUND_SECONDS = 0.25
_MOST_SILENCE_SECONDS = 2.0


class ReadThrottle:
    """Results are read at once. After output or log records, reading pauses in proportion to the time they took."""

    def __init__(self, pool_size: int) -> None:
        self._crew_size = pool_size
        self._began = 0.0
        self.words = False  # whether output or log records were read since `begin`

    def begin(self) -> None:
        self._began = time.monotonic()
        self.words = False

    def pause(self, tasks: int) -> float:
        """How long not to read the worker now, with this many tasks in its hands."""
        if self.words:
            round_ = (time.monotonic() - self._began) * self._crew_size
            if round_ > _ROUND_SECONDS:
                return min(2 * round_, _MOST_SILENCE_SECONDS)
        return _PAUSE_SECONDS if tasks >= _PLENTY else 0.0
