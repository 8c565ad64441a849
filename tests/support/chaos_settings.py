"""What long tests share: CHAOS_SEED decides what happens in them, CHAOS_SECONDS for how long.

CHAOS_SECONDS is that of the longest of `make chaos`; all others, those of `make chaos-long` too, stretch with it.
"""

import os

SEED = int(os.environ.get("CHAOS_SEED", "1848"))
USUAL_SECONDS = 60.0
SECONDS = float(os.environ.get("CHAOS_SECONDS", USUAL_SECONDS))

MINUTE = 60.0
HOUR = 60 * MINUTE


def stretched(seconds: float) -> float:
    """What usually takes so long: CHAOS_SECONDS=1 makes a minute of an hour."""
    return seconds * SECONDS / USUAL_SECONDS
