"""Settings of the long tests: CHAOS_SEED determines what happens in them, CHAOS_SECONDS for how long.

CHAOS_SECONDS is the length of the longest test of `make chaos`. All others, also of `make chaos-long`, are scaled.
"""

import os

SEED = int(os.environ.get("CHAOS_SEED", "1848"))
USUAL_SECONDS = 60.0
SECONDS = float(os.environ.get("CHAOS_SECONDS", USUAL_SECONDS))

MINUTE = 60.0
HOUR = 60 * MINUTE


def stretched(seconds: float) -> float:
    """Scale a usual duration: CHAOS_SECONDS=1 turns an hour into a minute."""
    return seconds * SECONDS / USUAL_SECONDS
