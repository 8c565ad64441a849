"""Backoff: how long to wait after a failed attempt. Pure."""

import math
import random
from dataclasses import dataclass
from datetime import timedelta

from underway.errors import InvalidOption

# The longest duration that Postgres can add to its clock.
LONGEST = timedelta(days=365_000)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a failed step is tried again.

    The wait after the n-th failure is `initial_interval * backoff_coefficient ** (n - 1)`, at most `max_interval`. The
    share `jitter` of it is random: with 0.5 the wait lies between half of that and all of it. It begins at the end of
    the failed attempt. `max_attempts` limits the attempts that failed or timed out, including the first one. Crashes
    have their own limit (`max_crashes`), and releases have none.
    """

    max_attempts: int = 5
    initial_interval: timedelta = timedelta(seconds=1)
    max_interval: timedelta = timedelta(seconds=60)
    backoff_coefficient: float = 2.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        if type(self.max_attempts) is not int or self.max_attempts < 1:
            raise InvalidOption(f"max_attempts must be at least 1 (the first try counts), not {self.max_attempts!r}")
        for interval in (self.initial_interval, self.max_interval):
            if not isinstance(interval, timedelta) or interval > LONGEST:
                raise InvalidOption(
                    f"initial_interval and max_interval must be timedeltas of at most 1000 years, not {interval!r}"
                )
        for number in (self.backoff_coefficient, self.jitter):
            if not isinstance(number, int | float):
                raise InvalidOption(f"backoff_coefficient and jitter must be numbers, not {number!r}")
        if self.initial_interval < timedelta(0) or self.max_interval < self.initial_interval:
            raise InvalidOption(
                f"intervals must satisfy 0 <= initial_interval <= max_interval, "
                f"not {self.initial_interval} and {self.max_interval}"
            )
        if not 1 <= self.backoff_coefficient < math.inf:  # JSON cannot represent infinity
            raise InvalidOption(f"backoff_coefficient must be at least 1 and finite, not {self.backoff_coefficient}")
        if not 0 <= self.jitter <= 1:
            raise InvalidOption(f"jitter must be between 0 and 1, not {self.jitter}")

    def wait(self, failures: int, rng: random.Random) -> float:
        """The number of seconds to wait after this many failures (at least 1)."""
        longest = self.max_interval.total_seconds()
        try:
            target = min(self.initial_interval.total_seconds() * self.backoff_coefficient ** (failures - 1), longest)
        except OverflowError:
            target = longest
        return target * (1 - self.jitter) + rng.uniform(0, target * self.jitter)
