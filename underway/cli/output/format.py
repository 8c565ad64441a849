"""Formats times, sizes and errors in the few characters that a table cell has."""

import math
import re
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from underway.postgres.inspection import RunCounts
from underway.supervisor.logs.headline import headline as full_headline
from underway.text import mebibytes

_MODULE_PREFIX = re.compile(r"^(\w+\.)+(?=\w+(:|$))")
_QUARANTINE_PREFIX = re.compile(r"^quarantined after \d+ crash(es)?: (the worker (died: |was )?)?")
_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


def age(since: datetime | None, now: datetime) -> str:
    """The age as `3m`, rounded down; a future time as `in 3m`, rounded: a delay of two days is never shown as `1d`."""
    if since is None:
        return ""
    seconds = (now - since).total_seconds()
    return _single_unit(seconds, math.floor) if seconds >= 0 else f"in {_single_unit(-seconds, round)}"


def _single_unit(seconds: float, rounding: Callable[[float], int]) -> str:
    for unit, length in _UNITS:
        if seconds >= length:
            return f"{rounding(seconds / length)}{unit}"
    return "0s"


def timestamp(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def duration(measured: float | timedelta | None) -> str:
    """A measured duration: `0.66ms`, `71ms`, `1.2s`, `4m05s`, `3h20m`."""
    if measured is None:
        return ""
    seconds = max(0.0, measured.total_seconds() if isinstance(measured, timedelta) else measured)
    if seconds < 1:
        return f"{seconds * 1000:.2g}ms" if seconds < 0.0995 else f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"


def size(byte_count: int | None) -> str:
    return "" if byte_count is None else mebibytes(byte_count)


def headline(error: str | None) -> str:
    """The most informative line of an error, without the module of its exception, which would fill a narrow column."""
    return _MODULE_PREFIX.sub("", full_headline(error)) if error else ""


def death_reason(error: str | None) -> str:
    """The headline; for a quarantined run only how its process last died."""
    return _QUARANTINE_PREFIX.sub("", headline(error))


def progress(reported: dict[str, Any] | None) -> str:
    """What a step reported with cx.progress."""
    if not reported:
        return ""
    total = reported.get("total")
    done = f"{reported.get('done')}" if total is None else f"{reported.get('done')}/{total}"
    return f"{done} {reported.get('note') or ''}".rstrip()


def count(number: int, thing: str, things: str = "") -> str:
    """`1 run`, `2,000 runs`."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def counters(run: RunCounts) -> str:
    """The counters of a run at its current step: `2 attempts, 1 crash`."""
    charged = (
        (run["attempts"], "attempt", "attempts"),
        (run["crashes"], "crash", "crashes"),
        (run["releases"], "release", "releases"),
    )
    return ", ".join(count(number, *words) for number, *words in charged if number)


def width_of(text: str) -> int:
    """The width in terminal columns: East Asian characters take two, combining characters none."""
    return sum(map(_columns, text))


def truncate(text: str, width: int) -> str:
    """The longest prefix that fits into `width` terminal columns."""
    taken = 0
    for index, char in enumerate(text):
        taken += _columns(char)
        if taken > width:
            return text[:index]
    return text


def _columns(char: str) -> int:
    return 0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
