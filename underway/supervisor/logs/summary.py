"""Logs a summary every ten seconds in which attempts have ended."""

import asyncio
import statistics
from collections import Counter
from collections.abc import Callable
from logging import getLogger

log = getLogger("underway.supervisor")

_SECONDS = 10.0


async def summarise(
    outcomes: Counter[str], ends: Counter[str], commits: list[float], running: Callable[[], int]
) -> None:
    """`outcomes` and `ends` (kills and lost runs) are totals since the start. `commits` has the durations of
    commits, and is cleared after each summary.
    """
    before: Counter[str] = Counter()
    while True:
        await asyncio.sleep(_SECONDS)
        now = outcomes + ends
        if changes := now - before:
            log.info("last %.0f s: %s; %d running", _SECONDS, format_summary(changes, commits), running())
        before = now
        commits.clear()


def format_summary(changes: Counter[str], commits: list[float]) -> str:
    counts = ", ".join(f"{count:,} {name}" for name, count in sorted(changes.items()))
    if not commits:
        return counts
    return f"{counts}; commits took {statistics.median(commits) * 1000:.1f} ms, at most {max(commits) * 1000:.0f} ms"
