"""Cron lines in time zones, compared with a scan of every minute, mostly on days when the clocks change."""

from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from underway import InvalidOption
from underway.schedule.cron import Cron, due

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
RANGES = {"minute": (0, 59), "hour": (0, 23), "day": (1, 31), "month": (1, 12), "weekday": (0, 6)}
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
# Clocks that move by half an hour, by a whole day, at midnight, at 00:01, backwards in spring, or twice a year for
# Ramadan; others are drawn from all zones.
ODD_ZONES = (
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Pacific/Kwajalein",
    "America/St_Johns",
    "Africa/Cairo",
    "America/Sao_Paulo",
    "Europe/Dublin",
    "Africa/Casablanca",
    "Antarctica/Troll",
    "Antarctica/Casey",
    "America/New_York",
    "Europe/Berlin",
    "Asia/Gaza",
    "UTC",
)
ZONES = sorted(zone for zone in available_timezones() if zone not in ("Factory", "localtime"))


class Pattern(NamedTuple):
    """A cron line with its meaning, known without parsing."""

    line: str
    minutes: set[int]
    hours: set[int]
    days: set[int]
    months: set[int]
    weekdays: set[int]

    def matches(self, wall: datetime) -> bool:
        if wall.minute not in self.minutes or wall.hour not in self.hours or wall.month not in self.months:
            return False
        _, _, day, _, weekday = self.line.split()
        on_day, on_weekday = wall.day in self.days, wall.isoweekday() % 7 in self.weekdays
        return (on_day or on_weekday) if day != "*" and weekday != "*" else (on_day and on_weekday)


def full(low: int, high: int) -> tuple[str, set[int]]:
    return "*", set(range(low, high + 1))


@st.composite
def fields(draw: Any, low: int, high: int) -> tuple[str, set[int]]:
    """The text of a field and the set it stands for."""
    number = st.integers(low, high)
    texts, meant = [], set()
    for _ in range(draw(st.integers(1, 3))):
        match draw(st.sampled_from(["one", "one", "range", "stepped range", "stepped all", "stepped from"])):
            case "one":
                one = draw(number)
                texts.append(str(one))
                meant.add(one)
            case "stepped all":
                step = draw(st.integers(2, 30))
                texts.append(f"*/{step}")
                meant |= set(range(low, high + 1, step))
            case "stepped from":
                one, step = draw(number), draw(st.integers(1, 30))
                texts.append(f"{one}/{step}")
                meant |= set(range(one, high + 1, step))
            case kind:
                first, last = sorted(draw(st.lists(number, min_size=2, max_size=2, unique=True)))
                step = draw(st.integers(1, 10)) if kind == "stepped range" else 1
                texts.append(f"{first}-{last}" + (f"/{step}" if kind == "stepped range" else ""))
                meant |= set(range(first, last + 1, step))
    return ",".join(texts), meant


@st.composite
def patterns(draw: Any) -> Pattern:
    drawn = [
        full(*RANGES["minute"]) if draw(st.integers(0, 5)) == 0 else draw(fields(*RANGES["minute"])),
        full(*RANGES["hour"]) if draw(st.booleans()) else draw(fields(*RANGES["hour"])),
        full(*RANGES["day"]) if draw(st.integers(0, 3)) else draw(fields(*RANGES["day"])),
        full(*RANGES["month"]) if draw(st.integers(0, 5)) else draw(fields(*RANGES["month"])),
        full(*RANGES["weekday"]) if draw(st.integers(0, 3)) else draw(fields(*RANGES["weekday"])),
    ]
    return Pattern(" ".join(text for text, _ in drawn), *(meant for _, meant in drawn))


@st.composite
def zones_with_instants(draw: Any) -> tuple[str, datetime]:
    """A zone and an instant, mostly on the day before a clock change."""
    name = draw(st.sampled_from(ODD_ZONES) | st.sampled_from(ZONES))
    zone, year = ZoneInfo(name), draw(st.integers(1975, 2060))
    days = [datetime(year, 1, 1, tzinfo=UTC) + day * DAY for day in range(366)]
    changed = [day for day in days if day.astimezone(zone).utcoffset() != (day + DAY).astimezone(zone).utcoffset()]
    start = draw(st.sampled_from(changed or days))
    return name, start - draw(st.integers(0, 12)) * HOUR


def scan(pattern: Pattern, zone: ZoneInfo, start: datetime, end: datetime) -> list[datetime]:
    """The rules of schedule/cron.py, applied to every minute."""
    every_hour = pattern.hours == set(range(24))
    slots = []
    before = (start - MINUTE).astimezone(zone).replace(tzinfo=None)
    while start < end:
        aware = start.astimezone(zone)
        wall = aware.replace(tzinfo=None, fold=0)
        matches = pattern.matches(wall) and (every_hour or aware.fold == 0)
        if not every_hour:
            left_out = int((wall - before) / MINUTE) - 1
            matches = matches or any(pattern.matches(before + n * MINUTE) for n in range(1, left_out + 1))
        if matches:
            slots.append(start)
        before, start = wall, start + MINUTE
    return slots


def slots_of(cron: Cron, start: datetime, end: datetime) -> list[datetime]:
    found = []
    slot = cron.after(start - timedelta(microseconds=1))
    while slot < end:
        found.append(slot)
        slot = cron.after(slot)
    return found


def pattern(line: str) -> Pattern:
    """A pattern for examples: numbers, lists and stars only."""
    sets = []
    for text, (low, high) in zip(line.split(), RANGES.values(), strict=True):
        sets.append(full(low, high)[1] if text == "*" else {int(number) for number in text.split(",")})
    return Pattern(line, *sets)


@settings(max_examples=100, deadline=None)
@given(patterns(), zones_with_instants())
@example(pattern("30 2 * * *"), ("America/New_York", datetime(2024, 3, 9, 12, tzinfo=UTC)))
@example(pattern("30 1 * * *"), ("America/New_York", datetime(2024, 11, 2, 12, tzinfo=UTC)))
@example(pattern("0,30 * * * *"), ("America/New_York", datetime(2024, 11, 2, 12, tzinfo=UTC)))
@example(pattern("0 9 * * *"), ("Pacific/Apia", datetime(2011, 12, 29, 12, tzinfo=UTC)))
@example(pattern("15,45 1,2 * * *"), ("Australia/Lord_Howe", datetime(2024, 4, 5, 12, tzinfo=UTC)))
@example(pattern("15,45 * * * *"), ("Australia/Lord_Howe", datetime(2024, 4, 5, 12, tzinfo=UTC)))
def test_slots_are_those_of_a_scan_of_every_minute(pattern: Pattern, place: tuple[str, datetime]) -> None:
    name, start = place
    end = start + 40 * HOUR
    expected = scan(pattern, ZoneInfo(name), start, end)
    try:
        cron = Cron(pattern.line, name)
        assert slots_of(cron, start, end) == expected
    except InvalidOption:
        assert not expected, "a line that matches was refused"
        return
    # Also from instants between two slots.
    for hours in range(0, 40, 5):
        instant = start + hours * HOUR + timedelta(minutes=7, seconds=30)
        later = [slot for slot in expected if slot > instant]
        assert not later or cron.after(instant) == later[0]
        earlier = [slot for slot in expected if slot <= instant]
        assert not earlier or cron.latest(expected[0], instant) == earlier[-1]


def local(line: str, zone: str, start: datetime, count: int) -> list[str]:
    cron, found = Cron.parse(f"{line}[{zone}]"), []
    for _ in range(count):
        start = cron.after(start)
        found.append(start.astimezone(ZoneInfo(zone)).strftime("%d %H:%M %Z"))
    return found


def test_a_skipped_time_of_day_is_due_right_after_the_gap() -> None:
    start = datetime(2024, 3, 9, 12, tzinfo=UTC)
    assert local("30 2 * * *", "America/New_York", start, 2) == ["10 03:00 EDT", "11 02:30 EDT"]
    # together with other slots at that instant
    assert local("0,15,30 2,3 * * *", "America/New_York", start, 3) == ["10 03:00 EDT", "10 03:15 EDT", "10 03:30 EDT"]


def test_a_repeated_time_of_day_is_due_the_first_time() -> None:
    start = datetime(2024, 11, 2, 12, tzinfo=UTC)
    assert local("30 1 * * *", "America/New_York", start, 2) == ["03 01:30 EDT", "04 01:30 EST"]


def test_a_line_for_every_hour_follows_real_time() -> None:
    gap, overlap = datetime(2024, 3, 10, 6, tzinfo=UTC), datetime(2024, 11, 3, 5, tzinfo=UTC)
    assert local("30 * * * *", "America/New_York", gap, 3) == ["10 01:30 EST", "10 03:30 EDT", "10 04:30 EDT"]
    assert local("30 0-23 * * *", "America/New_York", overlap, 3) == ["03 01:30 EDT", "03 01:30 EST", "03 02:30 EST"]


MEANINGS = [
    ("@yearly", ["2027-01-01 00:00", "2028-01-01 00:00"]),
    ("@annually", ["2027-01-01 00:00", "2028-01-01 00:00"]),
    ("@monthly", ["2026-03-01 00:00", "2026-04-01 00:00"]),
    ("@weekly", ["2026-02-08 00:00", "2026-02-15 00:00"]),
    ("@daily", ["2026-02-05 00:00", "2026-02-06 00:00"]),
    ("@MIDNIGHT", ["2026-02-05 00:00", "2026-02-06 00:00"]),
    ("@hourly", ["2026-02-04 12:00", "2026-02-04 13:00"]),
    ("*/20 * * * *", ["2026-02-04 11:40", "2026-02-04 12:00"]),
    ("5/20 * * * *", ["2026-02-04 11:45", "2026-02-04 12:05"]),
    ("0 9-17/4 * * mon-FRI", ["2026-02-04 13:00", "2026-02-04 17:00", "2026-02-05 09:00"]),
    ("0 0 * * fri-mon", ["2026-02-06 00:00", "2026-02-07 00:00", "2026-02-08 00:00", "2026-02-09 00:00"]),
    ("0 23-1 * * *", ["2026-02-04 23:00", "2026-02-05 00:00", "2026-02-05 01:00", "2026-02-05 23:00"]),
    ("0 0 1 nov-feb *", ["2026-11-01 00:00", "2026-12-01 00:00", "2027-01-01 00:00", "2027-02-01 00:00"]),
    ("0 0 * * 7", ["2026-02-08 00:00", "2026-02-15 00:00"]),
    ("0 0 * * 0-7", ["2026-02-05 00:00", "2026-02-06 00:00"]),
    ("0 0 L * *", ["2026-02-28 00:00", "2026-03-31 00:00", "2026-04-30 00:00"]),
    ("0 0 * * tue#2", ["2026-02-10 00:00", "2026-03-10 00:00"]),
    ("0 0 * * L5", ["2026-02-27 00:00", "2026-03-27 00:00"]),
    ("0 0 29 2 *", ["2028-02-29 00:00", "2032-02-29 00:00"]),
    # If both day fields are restricted, a day that matches either; */10 counts as restricted.
    ("0 0 13 * fri", ["2026-02-06 00:00", "2026-02-13 00:00", "2026-02-20 00:00", "2026-02-27 00:00"]),
    ("0 0 */2 * 0-6", ["2026-02-05 00:00", "2026-02-06 00:00"]),
    ("0 0 1-31 * */7", ["2026-02-05 00:00", "2026-02-06 00:00"]),
    ("0 0 */10 * sat", ["2026-02-07 00:00", "2026-02-11 00:00", "2026-02-14 00:00", "2026-02-21 00:00"]),
]  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), MEANINGS, ids=[line for line, _ in MEANINGS])
def test_meanings_of_lines(line: str, expected: list[str]) -> None:
    slot, found = datetime(2026, 2, 4, 11, 30, tzinfo=UTC), []  # a Wednesday
    for _ in expected:
        slot = Cron.parse(line).after(slot)
        found.append(slot.strftime("%Y-%m-%d %H:%M"))
    assert found == expected


@pytest.mark.parametrize(
    ("text", "line", "zone"),
    [
        ("@daily", "@daily", "UTC"),
        ("@daily[Asia/Tokyo]", "@daily", "Asia/Tokyo"),
        (" 0 9 * * 1  [Asia/Tokyo] ", "0 9 * * 1", "Asia/Tokyo"),
        ("0\t9 * * 1", "0\t9 * * 1", "UTC"),
    ],
)
def test_a_text_is_a_line_with_an_optional_zone(text: str, line: str, zone: str) -> None:
    cron = Cron.parse(text)
    assert (cron.line, cron.zone) == (line, zone)


REFUSED = {
    "no line": ["", "[UTC]", "every day", "daily", "* * * *", "*/5"],
    "seconds or years": ["0 * * * * *", "* * * * * 2030", "0 0 * * * * 2030"],
    "other aliases": ["@reboot", "@every 5m", "@dayly", "@", "@daily @daily"],
    "never": ["0 0 30 2 *", "0 0 31 4,6,9,11 *", "0 0 31 2 mon", "0 0 31-31 2 *"],
    "out of range": ["60 * * * *", "* 24 * * *", "* * 0 * *", "* * 32 * *", "* * * 0 *", "* * * 13 *", "* * * * 8"],
    "no value": ["-5 * * * *", "a * * * *", "1, * * * *", ",1 * * * *", "1-5/0 * * * *", "*/ * * * *", "1.5 * * * *",
                 "* * * foo *", "* * mon * *", "٣ * * * *", "?  * * * *"],
    "what croniter reads otherwise than one would": ["5-5 * * * *", "0 5-5/2 * * *", "* * * * sun-sun",
                                                     "0 22-2/3 * * *", "0 0 1 * mon#1", "0 0 * * mon#1,tue"],
    "at random or nearly": ["R * * * *", "H * * * *", "r(0-5) * * * *", "0 0 15W * *", "0 0 * * mon#6", "0 0 * * l8"],
    "brackets": ["@daily[UTC", "@daily UTC]", "@daily[[UTC]]", "@daily[UTC]x", "@daily[UTC][UTC]"],
    "zones": ["@daily[]", "@daily[Mars/Olympus]", "@daily[America]", "@daily[../UTC]", "@daily[/etc/localtime]",
              "@daily[localtime]", "@daily[right/UTC]", "@daily[posix/UTC]", "@daily[UTC\0]", "@daily[+02:00]"],
}  # fmt: skip


@pytest.mark.parametrize("text", [text for texts in REFUSED.values() for text in texts])
def test_invalid_schedules_are_refused(text: str) -> None:
    with pytest.raises(InvalidOption) as refused:
        Cron.parse(text)
    assert "Traceback" not in str(refused.value)
    assert "cron line" in str(refused.value) or "time zone" in str(refused.value)


@pytest.mark.parametrize("text", [None, 5, b"@daily"])
def test_a_schedule_must_be_a_string(text: Any) -> None:
    with pytest.raises(InvalidOption, match="@daily"):
        Cron.parse(text)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="*0123456789,-/@#?lwhrmonfridaly []UTC\t", max_size=25))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        cron = Cron.parse(text)
    except InvalidOption:
        return
    assert cron.after(datetime(2026, 1, 1, tzinfo=UTC)) > datetime(2026, 1, 1, tzinfo=UTC)


# Catching up

HOURLY = Cron.parse("@hourly")
NINE = datetime(2026, 2, 4, 9, tzinfo=UTC)


@pytest.mark.parametrize(
    ("catch_up", "late", "run", "next_hour"),
    [
        ("none", timedelta(0), [9], 10),
        ("none", timedelta(seconds=59), [9], 10),
        ("none", timedelta(seconds=60), [], 10),
        ("none", timedelta(hours=3), [12], 13),
        ("none", timedelta(hours=3, minutes=1), [], 13),
        ("last", timedelta(0), [9], 10),
        ("last", timedelta(minutes=59), [9], 10),
        ("last", timedelta(hours=3, minutes=30), [12], 13),
        ("all", timedelta(0), [9], 10),
        ("all", timedelta(hours=3), [9, 10, 11, 12], 13),
        ("all", timedelta(hours=9), [9, 10, 11, 12, 13], 14),
    ],
)
def test_which_missed_slots_are_caught_up(catch_up: str, late: timedelta, run: list[int], next_hour: int) -> None:
    slots, following = due(HOURLY, catch_up, NINE, NINE + late, most=5)
    assert [slot.hour for slot in slots] == run
    assert following == NINE.replace(hour=next_hour)


def test_a_slot_that_was_moved_in_sql_counts() -> None:
    moved = NINE + timedelta(minutes=17)
    assert due(HOURLY, "last", moved, moved, most=5) == ([moved], NINE + HOUR)
    assert due(HOURLY, "all", moved, moved + HOUR, most=5) == ([moved, NINE + HOUR], NINE + 2 * HOUR)


def test_the_latest_of_a_million_missed_slots_is_found_directly() -> None:
    cron = Cron.parse("* * * * *[Europe/Berlin]")
    asked = 0

    class Counting(Cron):
        def after(self, instant: datetime) -> datetime:
            nonlocal asked
            asked += 1
            return super().after(instant)

    now = NINE + 700 * DAY + timedelta(seconds=30)
    assert Counting(cron.line, cron.zone).latest(NINE, now) == now - timedelta(seconds=30)
    assert asked < 100
