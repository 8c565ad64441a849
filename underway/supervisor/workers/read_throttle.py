"""How much of its supervisor's time a worker gets for what it has to say."""

import time

from underway.wire import messages

# A worker that has been handed so much is not read again for so long. Woken at each result of a no-op, the supervisor
# took the CPU from the very worker that it listened to.
_PLENTY = 8
_PAUSE_SECONDS = 0.001
# Words are work for whoever reads them: 64 workers that flooded at once kept the supervisor's loop in one round for
# seconds, and leases lapsed. If all talked as much as this worker did just now, a round may take so long; after more it
# is not read for twice the time that such a round would take, which leaves the supervisor half of its own.
OUTPUT_MESSAGES = frozenset((messages.Log, messages.Progress))
_ROUND_SECONDS = 0.25
_MOST_SILENCE_SECONDS = 2.0


class ReadThrottle:
    """Results are always welcome; words, its output among them, have to be paid for."""

    def __init__(self, crew_size: int) -> None:
        self._crew_size = crew_size
        self._began = 0.0
        self.words = False  # whether there were any since it began

    def begin(self) -> None:
        self._began = time.monotonic()
        self.words = False

    def pause(self, tasks: int) -> float:
        """How long not to read it now, with so many tasks in its hands."""
        if self.words:
            round_ = (time.monotonic() - self._began) * self._crew_size
            if round_ > _ROUND_SECONDS:
                return min(2 * round_, _MOST_SILENCE_SECONDS)
        return _PAUSE_SECONDS if tasks >= _PLENTY else 0.0
