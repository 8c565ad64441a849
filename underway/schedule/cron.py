"""When a schedule is due: a cron line and a time zone -> instants. Pure: no SQL, no clock.

A line matches what the clocks on the zone's walls show. On the nights when those are changed:

- A line that leaves the hour open (`*`, or all 24) follows real time. It is due at each minute whose clock time
  matches: the times that are left out do not exist, those that come twice count twice. So `*/15 * * * *` is due every
  quarter of an hour, whatever is done to the clocks.
- Any other line names times of the day, and each is due once. A time that is left out is due at the first instant
  after the gap; one that comes twice is due the first time. So `30 2 * * *` is due once a day, every day.

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

_ON_TIME = timedelta(minutes=1)

_TEXT = re.compile(r"([^\[\]]*?)\s*(?:\[([^\[\]]*)\])?")
_ALIASES = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")
_FIELDS = ("minute", "hour", "day of month", "month", "day of week")
_HOUR, _DAY, _WEEKDAY = 1, 2, 4
# Less than croniter takes: it also knows days like 15W and values drawn at random, reads 5-5 as "all" and miscounts
# the steps of a range that runs backwards.
_VALUE = re.compile(r"(\*|\d+|[a-z]{3}|(?P<low>\d+|[a-z]{3})-(?P<high>\d+|[a-z]{3}))(?P<step>/\d+)?", re.ASCII)
_NTH_WEEKDAY = re.compile(r"(\d|[a-z]{3})#[1-5]|l\d", re.ASCII)
# Names that mean something else on every machine, or count leap seconds.
_NO_ZONES = re.compile(r"localtime|posixrules|Factory|(posix|right)/.*")
# Any instant will do to see whether a line ever matches; looking fifty years ahead finds even a fifth Sunday in
# February.
_SOME_INSTANT = datetime(2001, 1, 1, tzinfo=UTC)


class Cron:
    """A cron line in a time zone. Raises InvalidOption for what is neither."""

    def __init__(self, line: str, zone: str) -> None:
        self.line = line
        self.zone = zone
        self._zone = _zone(zone)
        fields = _checked_line(line)
        try:
            self._croniter: Any = croniter(line, _SOME_INSTANT.replace(tzinfo=None), ret_type=datetime)
            croniter.expand(line, strict=True)
        except CroniterError as error:
            raise InvalidOption(f"the cron line {line!r} is not valid: {error}") from error
        self._every_hour = self._croniter.expanded[_HOUR] == ["*"]
        if any(_NTH_WEEKDAY.fullmatch(value) for value in fields[_WEEKDAY]) and fields[_DAY] != ["*"]:
            raise InvalidOption(f"the cron line {line!r}: a weekday of the month (fri#2, L5) needs * as day of month")

    @staticmethod
    def parse(text: str) -> "Cron":
        """From `line[Zone]`, as in `@daily[America/Los_Angeles]` or `*/5 * * * *`; the zone is UTC if none is named."""
        match = _TEXT.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise InvalidOption(f'a schedule is a cron line and perhaps a zone, "@daily[Europe/Berlin]", not {text!r}')
        cron = Cron(match[1], "UTC" if match[2] is None else match[2])
        cron.after(_SOME_INSTANT)
        return cron

    def after(self, instant: datetime) -> datetime:
        """The first slot after this instant, in UTC."""
        here = self._wall(instant)
        # Where clocks are about to be set back, times that have passed come again.
        back = max(timedelta(0), self._offset(instant) - self._offset(instant + timedelta(days=1)))
        found: list[datetime] = []
        for wall in self._walls(here - back):
            found += [slot for slot in self._slots(wall) if slot > instant]
            if found and wall > here:
                break
        return min(found)

    def latest(self, slot: datetime, until: datetime) -> datetime:
        """The last slot that is not after `until`, given one that is not; by halves, since there may be a million."""
        bound = until
        while (following := self.after(slot)) <= until:
            middle = slot + (bound - slot) / 2
            later = self.after(middle)
            slot, bound = (later, bound) if later <= until else (following, middle)
        return slot

    def _walls(self, wall: datetime) -> Iterator[datetime]:
        """The clock times after this one that match, without a thought for the zone."""
        while True:
            try:
                wall = self._croniter.get_next(start_time=wall)
            except CroniterBadDateError as error:
                raise InvalidOption(f"the cron line {self.line!r} never matches") from error
            yield wall

    def _slots(self, wall: datetime) -> set[datetime]:
        """When the clocks show this time; by the rules above, for one that they leave out or show twice."""
        first, second = (wall.replace(tzinfo=self._zone, fold=fold).astimezone(UTC) for fold in (0, 1))
        if first > second:  # left out: fold 0 reads it by the offset before the gap, fold 1 by the one after it
            return set() if self._every_hour else {self._end_of_gap(second, first)}
        return {first, second} if self._every_hour else {first}

    def _end_of_gap(self, before: datetime, after: datetime) -> datetime:
        old = self._offset(before)
        seconds = range(int((after - before).total_seconds()))
        moved = bisect_left(seconds, True, key=lambda second: self._offset(before + timedelta(seconds=second)) != old)
        return before + timedelta(seconds=moved)

    def _wall(self, instant: datetime) -> datetime:
        return instant.astimezone(self._zone).replace(tzinfo=None)

    def _offset(self, instant: datetime) -> timedelta:
        return self._wall(instant) - instant.astimezone(UTC).replace(tzinfo=None)


def due(cron: Cron, catch_up: str, slot: datetime, now: datetime, most: int) -> tuple[list[datetime], datetime]:
    """The slots to run now of those from `slot` until `now`, and the one to wait for after that.

    With `all`, at most so many at a time, the oldest first. With `none` and `last`, the latest; with `none` not if it
    has been missed, which is what a slot is that nobody could serve for a minute.
    """
    if catch_up == "all":
        slots = [slot]
        while (following := cron.after(slots[-1])) <= now and len(slots) < most:
            slots.append(following)
        return slots, following
    latest = cron.latest(slot, now)
    missed = now - latest >= _ON_TIME
    return ([] if missed and catch_up == "none" else [latest]), cron.after(now)


def _zone(name: str) -> ZoneInfo:
    try:
        if _NO_ZONES.fullmatch(name):
            raise ValueError
        return ZoneInfo(name)
    except (ValueError, KeyError, OSError) as error:
        raise InvalidOption(
            f"there is no time zone {name!r}: expected a name like Europe/Berlin "
            f"(where a system has no zones at all: pip install tzdata)"
        ) from error


def _checked_line(line: str) -> list[list[str]]:
    """The values of each field; of an alias, those of five stars."""
    if line.lower() in _ALIASES:
        return [["*"]] * len(_FIELDS)
    if line.startswith("@"):
        raise InvalidOption(f"there is no cron line {line!r}, only {', '.join(_ALIASES)}")
    fields = [field.lower().split(",") for field in line.split()]
    if len(fields) != len(_FIELDS):
        raise InvalidOption(
            f"a cron line has five fields ({', '.join(_FIELDS)}), and no seconds or years; {line!r} has {len(fields)}"
        )
    for index, (field, values) in enumerate(zip(_FIELDS, fields, strict=True)):
        for value in values:
            if not _is_value(index, value):
                raise InvalidOption(f"the cron line {line!r}: {value!r} is no {field}")
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
