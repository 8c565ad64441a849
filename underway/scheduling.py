"""Schedules as a client makes, lists and removes them, on a connection of the app's or of the caller's."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from underway import codec, keys, options
from underway.context import refuse_inside_step
from underway.errors import InvalidOption
from underway.job import Job
from underway.loading import refuse_while_loading

if TYPE_CHECKING:
    import psycopg

    from underway.app import Underway
    from underway.postgres.schedules import Row

CatchUp: TypeAlias = Literal["none", "last", "all"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """A cron line that enqueues runs of a job, as it stood when it was read.

    `next_at` is the slot it is waiting for, in UTC; `input` is what its runs are given, as plain JSON values.
    """

    job: str
    name: str
    cron: str
    zone: str
    catch_up: str
    overlap: bool
    input: Any
    next_at: datetime

    def next_slots(self, count: int = 1) -> list[datetime]:
        """The slots to come, in the schedule's own zone, beginning with `next_at`."""
        return list(itertools.islice(self._slots(), count))

    def _slots(self) -> Iterator[datetime]:
        from zoneinfo import ZoneInfo

        from underway.schedule import Cron  # here and below: workers, which never read a cron line, start without it

        cron, zone, slot = Cron(self.cron, self.zone), ZoneInfo(self.zone), self.next_at
        while True:
            yield slot.astimezone(zone)
            slot = cron.after(slot)


def schedule(
    app: "Underway",
    job: Job[Any, Any, Any],
    cron: str,
    value: Any,
    name: str,
    catch_up: CatchUp,
    overlap: bool,
    conn: "psycopg.Connection[Any] | None",
) -> Schedule:
    from underway.postgres import schedules

    refuse("schedule", conn)
    row_at = checked(job, cron, value, name, catch_up, overlap)
    with app._given_or_own(conn) as connection:
        return made(schedules.put(connection, row_at))


def unschedule(app: "Underway", job: str, name: str, conn: "psycopg.Connection[Any] | None") -> bool:
    from underway.postgres import schedules

    refuse("unschedule", conn)
    with app._given_or_own(conn) as connection:
        return schedules.drop(connection, job, name)


def every_schedule(app: "Underway") -> list[Schedule]:
    from underway.postgres import schedules

    with app._own() as connection:
        return [made(row) for row in schedules.every(connection)]


# What the async client does in the same way


def refuse(call: str, conn: object) -> None:
    refuse_while_loading(call)
    if conn is None:
        refuse_inside_step(f"{call} without conn=", f"use job.{call}(…, conn=cx.tx), which commits with the step")


def checked(
    job: Job[Any, Any, Any], cron: str, value: Any, name: str, catch_up: CatchUp, overlap: bool
) -> "Callable[[datetime], Row]":
    """What says how the schedule stands when it is made at an instant. Raises InvalidOption, PayloadError."""
    from underway.postgres.schedules import Row
    from underway.schedule import Cron

    parsed = Cron.parse(cron)
    options.checked_name("name", name)
    _check_policies(catch_up, overlap)
    first = job.compiled[0]
    payload = codec.encode(value, first.input_type)
    keys.fill_both(first.spec.placement.unique_key, first.spec.placement.concurrency_key, payload)
    about = (job.name, name, parsed.line, parsed.zone, catch_up, overlap, payload.decode())
    return lambda now: Row(*about, next_at=parsed.after(now))


def _check_policies(catch_up: object, overlap: object) -> None:
    if catch_up not in get_args(CatchUp):
        raise InvalidOption(f"catch_up must be one of {', '.join(get_args(CatchUp))}, not {catch_up!r}")
    if not isinstance(overlap, bool):
        raise InvalidOption(f"overlap must be True or False, not {overlap!r}")
    if catch_up == "all" and not overlap:
        raise InvalidOption(
            "catch_up='all' enqueues every missed slot at once, and overlap=False would skip all but one of them: "
            "take catch_up='last', or overlap=True with a concurrency_key, under which they run one after the other"
        )


def made(row: "Row") -> Schedule:
    return Schedule(**{**row._asdict(), "input": codec.decode_plain(row.input)})
