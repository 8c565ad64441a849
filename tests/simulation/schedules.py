"""sql/statements/schedules.sql: which slots are due, and the runs that are enqueued for them.

The wall clock runs ten times as fast as the others, because a cron line has no seconds. Times are in microseconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simulation.app import first_step
from simulation.database import Database
from simulation.ledger import Broken

_MINUTE = 60_000_000
_BEGINNING = 1_800_000_000_000_000
_SPEED = 10


@dataclass(slots=True)
class Schedule:
    """Due every minute."""

    name: str
    job: str
    catch_up: str
    overlap: bool = True
    input: bytes = b"null"
    next_at: int = _BEGINNING
    locked_until: float = 0.0
    fired: list[int] = field(default_factory=list)  # the slots for which runs were enqueued


class Schedules:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._began = database.loop.time()
        self.every = [
            Schedule("caught up", "short", "all"),
            Schedule("alone", "chain", "last", overlap=False),
            Schedule("keyed", "keyed", "last", input=b'"red"'),
            Schedule("fresh", "even", "none"),
        ]

    def now(self) -> int:
        return _BEGINNING + int((self._database.loop.time() - self._began) * _SPEED * 1_000_000)

    def have_passed(self, instant: int) -> bool:
        """Whether all schedules have been fired until then."""
        return all(one.next_at > instant for one in self.every)

    def unschedule(self) -> None:
        self.every.clear()

    def upcoming(self, given: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        now = self.now()
        until = now + given["within"] * 1_000_000
        due = [one for one in self.every if one.next_at <= until and one.job in given["jobs"]]
        due.sort(key=lambda one: one.next_at)
        return [(one.job, one.name, "* * * * *", "UTC", one.catch_up, one.next_at, now) for one in due]

    def fire(self, given: Mapping[str, Any]) -> list[tuple[int, None]]:
        for one in self.every:
            if one.name == given["name"] and one.next_at == given["next_at"]:
                return [] if one.locked_until > self._database.loop.time() else [(self._fire(one, given), None)]
        return []

    def _fire(self, one: Schedule, given: Mapping[str, Any]) -> int:
        slots, following = given["slots"], given["following"]
        self._check(one, slots, following)
        if given["step"] != first_step(one.job):
            raise Broken(f"{one.name}: its run is to begin with {given['step']}")
        one.next_at = following
        live = any(row.schedule == one.name for row in self._database.live.values())
        if live and not one.overlap:
            return 0
        for slot in slots:
            self._database.loop.note("fires", one.name, slot)
            self._database.insert(self._database.new_name(), one.job, first_step(one.job), one.input, schedule=one.name)
        one.fired += slots
        if slots:
            self._database.notify("default")
        return len(slots)

    def _check(self, one: Schedule, slots: list[int], following: int) -> None:
        if again := [slot for slot in slots if slot in one.fired]:
            raise Broken(f"{one.name}: {again} once more")
        if any(slot % _MINUTE or not one.next_at <= slot <= self.now() for slot in slots):
            raise Broken(f"{one.name}: {slots} are not due, it waits for {one.next_at} and it is {self.now()}")
        if following % _MINUTE or following <= max(slots, default=one.next_at):
            raise Broken(f"{one.name}: after {slots} it would wait for {following}")
        if one.catch_up == "all" and slots != list(range(one.next_at, following, _MINUTE)):
            raise Broken(f"{one.name}: {slots} are not all from {one.next_at} until {following}")
        if one.catch_up == "last" and slots != [following - _MINUTE]:
            raise Broken(f"{one.name}: {slots} is not the last before {following}")
