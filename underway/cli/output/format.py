"""Times, sizes and errors in the few characters that a table has for them."""

import math
import re
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from underway.postgres.inspection import RunCounts
from underway.supervisor.logs.headline import headline as line_that_says_most

_MODULE = re.compile(r"^(\w+\.)+(?=\w+(:|$))")
_BEFORE_THE_DEATH = re.compile(r"^quarantined after \d+ crash(es)?: (the worker (died: |was )?)?")
_STEPS = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


def age(since: datetime | None, now: datetime) -> str:
    """How long ago, as `3m`; `in 3m` of what is to come, rounded: a delay of two days is not said to be `1d`."""
    if since is None:
        return ""
    seconds = (now - since).total_seconds()
    return _coarse(seconds, math.floor) if seconds >= 0 else f"in {_coarse(-seconds, round)}"


def _coarse(seconds: float, whole: Callable[[float], int]) -> str:
    for unit, length in _STEPS:
        if seconds >= length:
            return f"{whole(seconds / length)}{unit}"
    return "0s"


def moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def seconds(took: float | timedelta | None) -> str:
    """A duration as it was measured: `0.66ms`, `71ms`, `1.2s`, `4m05s`, `3h20m`."""
    if took is None:
        return ""
    exact = max(0.0, took.total_seconds() if isinstance(took, timedelta) else took)
    if exact < 1:
        return f"{exact * 1000:.2g}ms" if exact < 0.0995 else f"{exact * 1000:.0f}ms"
    if exact < 60:
        return f"{exact:.1f}s"
    minutes, rest = divmod(round(exact), 60)
    return f"{minutes}m{rest:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"


def size(count: int | None) -> str:
    if count is None:
        return ""
    return f"{count / 2**20:,.0f} MiB"


def headline(error: str | None) -> str:
    """Without the module of the exception, which would fill a narrow column."""
    return _MODULE.sub("", line_that_says_most(error)) if error else ""


def last_death(error: str | None) -> str:
    """The headline, and of the error of a quarantined run no more than how its process died the last time."""
    return _BEFORE_THE_DEATH.sub("", headline(error))


def progress(reported: dict[str, Any] | None) -> str:
    """What a step said with cx.progress."""
    if not reported:
        return ""
    total = reported.get("total")
    done = f"{reported.get('done')}" if total is None else f"{reported.get('done')}/{total}"
    return f"{done} {reported.get('note') or ''}".rstrip()


def count(number: int, thing: str, things: str = "") -> str:
    """`1 run`, `2,000 runs`."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def charges(run: RunCounts) -> str:
    """What a run has been charged with so far, at the step where it stands: `2 attempts, 1 crash`."""
    charged = [
        (run["attempts"], "attempt", "attempts"),
        (run["crashes"], "crash", "crashes"),
        (run["releases"], "release", "releases"),
    ]
    return ", ".join(count(number, *words) for number, *words in charged if number)


def width_of(text: str) -> int:
    """In columns of a terminal, where East Asian characters take two and combining ones none."""
    return sum(map(_columns, text))


def fitting(text: str, width: int) -> str:
    """As much of its beginning as fits."""
    taken = 0
    for index, char in enumerate(text):
        taken += _columns(char)
        if taken > width:
            return text[:index]
    return text


def _columns(char: str) -> int:
    return 0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
