"""Schedules, as a client creates, lists and removes them."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from underway.client.current_step import refuse_inside_step
from underway.definition import options
from underway.definition.app_import import forbid_during_import
from underway.definition.job_definition import JobDefinition
from underway.errors import InvalidOption
from underway.keys import template
from underway.payload import codec

if TYPE_CHECKING:
    from underway.postgres.query import BoundQuery
    from underway.postgres.schedule_queries import ScheduleRow

CatchUp: TypeAlias = Literal["none", "last", "all"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """A cron line that enqueues runs of a job, as it was when it was read.

    `next_at` is the next slot, in UTC; `input` is the input of its runs, as plain JSON values.
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
        """The next slots in the schedule's own zone, beginning with `next_at`."""
        return list(itertools.islice(self._slots(), count))

    def _slots(self) -> Iterator[datetime]:
        from zoneinfo import ZoneInfo

        # Here and below: workers start without these modules, because they never read a cron line.
        from underway.schedule.cron import Cron

        cron, zone, slot = Cron(self.cron, self.zone), ZoneInfo(self.zone), self.next_at
        while True:
            yield slot.astimezone(zone)
            slot = cron.after(slot)


def schedule(
    job: JobDefinition[Any, Any, Any],
    cron: str,
    value: Any,
    conn: object,
    *,
    name: str,
    catch_up: CatchUp,
    overlap: bool,
) -> "BoundQuery[Schedule]":
    """Create or change a schedule. Raises InvalidOption, PayloadError."""
    from underway.postgres import schedule_queries
    from underway.schedule.cron import Cron

    _refuse("schedule", conn)
    parsed = Cron.parse(cron)
    options.checked_name("name", name)
    _check_policies(catch_up, overlap)
    first = job.compiled[0]
    payload = codec.encode(value, first.input_type)
    template.fill_both(first.spec.placement.unique_key, first.spec.placement.concurrency_key, payload)

    def row_at(now: datetime) -> "ScheduleRow":
        return schedule_queries.ScheduleRow(
            job=job.name,
            name=name,
            cron=parsed.line,
            zone=parsed.zone,
            catch_up=catch_up,
            overlap=overlap,
            input=payload.decode(),
            next_at=parsed.after(now),
        )

    return schedule_queries.put.bind(row_at).then(_from_row)


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


def unschedule(job: JobDefinition[Any, Any, Any], name: str, conn: object) -> "BoundQuery[bool]":
    """Remove a schedule. Whether it existed."""
    from underway.postgres import schedule_queries

    _refuse("unschedule", conn)
    return schedule_queries.drop.bind(job.name, name)


def schedules() -> "BoundQuery[list[Schedule]]":
    """All schedules in the database, by job and name."""
    from underway.postgres import schedule_queries

    return schedule_queries.all_schedules.bind().then(lambda rows: [_from_row(row) for row in rows])


def _refuse(call: str, conn: object) -> None:
    forbid_during_import(call)
    if conn is None:
        refuse_inside_step(f"{call} without conn=", f"use job.{call}(…, conn=cx.tx), which commits with the step")


def _from_row(row: "ScheduleRow") -> Schedule:
    return Schedule(**{**row._asdict(), "input": codec.decode_plain(row.input)})
