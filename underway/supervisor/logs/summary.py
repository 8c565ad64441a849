"""A line in the log every ten seconds in which something ended."""

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
    """`outcomes` of attempts, and their violent `ends`, are counted from the start on; `commits` are the seconds that
    each has taken, and are taken from the list.
    """
    before: Counter[str] = Counter()
    while True:
        await asyncio.sleep(_SECONDS)
        now = outcomes + ends
        if changes := now - before:
            log.info("last %.0f s: %s; %d running", _SECONDS, told(changes, commits), running())
        before = now
        commits.clear()


def told(changes: Counter[str], commits: list[float]) -> str:
    counts = ", ".join(f"{count:,} {name}" for name, count in sorted(changes.items()))
    if not commits:
        return counts
    return f"{counts}; commits took {statistics.median(commits) * 1000:.1f} ms, at most {max(commits) * 1000:.0f} ms"
