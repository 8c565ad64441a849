"""Computes the instants at which a cron line in a time zone is due. Pure: no SQL, no clock.

A line matches wall-clock times of its zone. When the clocks change:

- A line that matches every hour (`*`, or all 24) follows real time. It is due at each minute whose wall-clock time
  matches: skipped times do not exist, and repeated times count twice. So `*/15 * * * *` is due every quarter of an
  hour, on every day.
- Any other line names times of the day, and each is due once. A skipped time is due at the first instant after the gap;
  a repeated time is due the first time. So `30 2 * * *` is due once a day, every day.

Two times that fall on the same instant are one slot.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from croniter import CroniterBadDateError, CroniterError, croniter

from underway.errors import InvalidOption

# A slot that has not been served for this long is missed.
_MISSED_AFTER = timedelta(minutes=1)

_TEXT = re.compile(r"([^\[\]]*?)\s*(?:\[([^\[\]]*)\])?")
_ALIASES = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")
_FIELDS = ("minute", "hour", "day of month", "month", "day of week")
_HOUR, _DAY, _WEEKDAY = 1, 2, 4
# Stricter than croniter, which also accepts days like 15W and random values, reads 5-5 as "all", and miscounts the
# steps of a range that runs backwards.
_VALUE = re.compile(r"(\*|\d+|[a-z]{3}|(?P<low>\d+|[a-z]{3})-(?P<high>\d+|[a-z]{3}))(?P<step>/\d+)?", re.ASCII)
_NTH_WEEKDAY = re.compile(r"(\d|[a-z]{3})#[1-5]|l\d", re.ASCII)
# Names whose meaning depends on the machine, and zones that count leap seconds.
_UNUSABLE_ZONES = re.compile(r"localtime|posixrules|Factory|(posix|right)/.*")
# To check whether a line ever matches, any instant will do: croniter looks fifty years ahead, which includes a fifth
# Sunday in February.
_SOME_INSTANT = datetime(2001, 1, 1, tzinfo=UTC)


class Cron:
    """A cron line in a time zone. Raises InvalidOption if one of them is not valid."""

    def __init__(self, line: str, zone: str) -> None:
        self.line = line
        self.zone = zone
        self._zone = _zone(zone)
        fields = _checked_line(line)
        try:
            croniter.expand(line, strict=True)
            start = _SOME_INSTANT.replace(tzinfo=None)
            self._croniter: Any = croniter(_without_stepped_stars(line), start, ret_type=datetime)
        except CroniterError as error:
            raise InvalidOption(f"invalid cron line {line!r}: {error}") from error
        self._every_hour = self._croniter.expanded[_HOUR] == ["*"]
        if any(_NTH_WEEKDAY.fullmatch(value) for value in fields[_WEEKDAY]) and fields[_DAY] != ["*"]:
            raise InvalidOption(
                f"invalid cron line {line!r}: a weekday of the month (fri#2, L5) needs * as day of month"
            )

    @staticmethod
    def parse(text: str) -> "Cron":
        """From `line[Zone]`, such as `@daily[America/Los_Angeles]`, or from `line`, such as `*/5 * * * *`, in UTC."""
        match = _TEXT.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise InvalidOption(
                f'invalid schedule {text!r}: expected a cron line and perhaps a zone, such as "@daily[Europe/Berlin]"'
            )
        cron = Cron(match[1], "UTC" if match[2] is None else match[2])
        cron.after(_SOME_INSTANT)
        return cron

    def after(self, instant: datetime) -> datetime:
        """The first slot after this instant, in UTC."""
        now = self._wall_time(instant)
        # If the clocks are about to be set back, past times will be repeated.
        repeated = max(timedelta(0), self._offset(instant) - self._offset(instant + timedelta(days=1)))
        found: list[datetime] = []
        for wall_time in self._matching_wall_times(now - repeated):
            found += [slot for slot in self._slots(wall_time) if slot > instant]
            if found and wall_time > now:
                break
        return min(found)

    def latest(self, slot: datetime, until: datetime) -> datetime:
        """The last slot not after `until`, given an earlier slot. By bisection: there may be a million slots."""
        bound = until
        while (following := self.after(slot)) <= until:
            middle = slot + (bound - slot) / 2
            later = self.after(middle)
            slot, bound = (later, bound) if later <= until else (following, middle)
        return slot

    def _matching_wall_times(self, wall_time: datetime) -> Iterator[datetime]:
        """The matching times after this one, regardless of the zone."""
        while True:
            try:
                wall_time = self._croniter.get_next(start_time=wall_time)
            except CroniterBadDateError as error:
                raise InvalidOption(f"the cron line {self.line!r} never matches") from error
            yield wall_time

    def _slots(self, wall_time: datetime) -> set[datetime]:
        """The instants with this wall-clock time. For a skipped or repeated time, see the rules above."""
        first, second = (wall_time.replace(tzinfo=self._zone, fold=fold).astimezone(UTC) for fold in (0, 1))
        if first > second:  # skipped: fold 0 uses the offset before the gap, fold 1 the offset after it
            return set() if self._every_hour else {self._end_of_gap(second, first)}
        return {first, second} if self._every_hour else {first}

    def _end_of_gap(self, before: datetime, after: datetime) -> datetime:
        old = self._offset(before)
        seconds = range(int((after - before).total_seconds()))
        moved = bisect_left(seconds, True, key=lambda second: self._offset(before + timedelta(seconds=second)) != old)
        return before + timedelta(seconds=moved)

    def _wall_time(self, instant: datetime) -> datetime:
        return instant.astimezone(self._zone).replace(tzinfo=None)

    def _offset(self, instant: datetime) -> timedelta:
        return self._wall_time(instant) - instant.astimezone(UTC).replace(tzinfo=None)


def due(cron: Cron, catch_up: str, slot: datetime, now: datetime, most: int) -> tuple[list[datetime], datetime]:
    """The slots to run now, out of those from `slot` until `now`, and the next slot after them.

    With `all`, at most `most` slots, the oldest first. With `last`, only the latest slot. With `none`, the latest slot
    unless it was missed, which means that no supervisor could serve it for a minute.
    """
    if catch_up == "all":
        slots = [slot]
        while (following := cron.after(slots[-1])) <= now and len(slots) < most:
            slots.append(following)
        return slots, following
    latest = cron.latest(slot, now)
    missed = now - latest >= _MISSED_AFTER
    return ([] if missed and catch_up == "none" else [latest]), cron.after(now)


def _without_stepped_stars(line: str) -> str:
    """Write `*/2` in a day field as `1-31/2`: beside a star, croniter treats the other field as `*` if it is 0-6."""
    if line.startswith("@"):
        return line
    fields = line.split()
    fields[_DAY] = fields[_DAY].replace("*/", "1-31/")
    fields[_WEEKDAY] = fields[_WEEKDAY].replace("*/", "0-6/")
    return " ".join(fields)


def _zone(name: str) -> ZoneInfo:
    try:
        if _UNUSABLE_ZONES.fullmatch(name):
            raise ValueError
        return ZoneInfo(name)
    except (ValueError, KeyError, OSError) as error:
        raise InvalidOption(
            f"unknown time zone {name!r}: expected a name like Europe/Berlin "
            f"(if this system knows no zones: pip install tzdata)"
        ) from error


def _checked_line(line: str) -> list[list[str]]:
    """The values of each field. An alias counts as five stars, because it needs no check."""
    if line.lower() in _ALIASES:
        return [["*"]] * len(_FIELDS)
    if line.startswith("@"):
        raise InvalidOption(f"invalid cron line {line!r}: expected five fields or one of {', '.join(_ALIASES)}")
    fields = [field.lower().split(",") for field in line.split()]
    if len(fields) != len(_FIELDS):
        raise InvalidOption(
            f"invalid cron line {line!r}: expected five fields ({', '.join(_FIELDS)}), not {len(fields)}"
        )
    for index, (field, values) in enumerate(zip(_FIELDS, fields, strict=True)):
        for value in values:
            if not _is_value(index, value):
                raise InvalidOption(f"invalid {field} {value!r} in cron line {line!r}")
    return fields


def _is_value(index: int, value: str) -> bool:
    if (index == _DAY and value == "l") or (index == _WEEKDAY and _NTH_WEEKDAY.fullmatch(value)):
        return True
    match = _VALUE.fullmatch(value)
    if match is None or match["low"] is None:
        return match is not None
    low, high = match["low"], match["high"]
    ascends = low.isdigit() and high.isdigit() and int(low) < int(high)
    return ascends or (low != high and match["step"] is None)
