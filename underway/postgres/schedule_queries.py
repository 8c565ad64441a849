"""Schedules in Postgres: written and listed by clients, fired by supervisors."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from underway.definition.manifest import Placement
from underway.postgres.arrays import Int8s, UUIDs
from underway.postgres.client_queries import instant, microseconds
from underway.postgres.cursors import Json
from underway.postgres.query import QuerySteps, Statement, query
from underway.postgres.reconnecting import ReconnectingConnection

# The number of schedules that are read at a time; the next read follows at once.
_LIMIT = 100


class ScheduleRow(NamedTuple):
    """A schedule as it is stored. `input` is JSON."""

    job: str
    name: str
    cron: str
    zone: str
    catch_up: str
    overlap: bool
    input: str
    next_at: datetime


class Upcoming(NamedTuple):
    """A schedule that is due or soon will be, and the database's time when it was read."""

    job: str
    name: str
    cron: str
    zone: str
    catch_up: str
    next_at: datetime
    now: datetime


@query
def put(row_at: Callable[[datetime], ScheduleRow]) -> QuerySteps[ScheduleRow]:
    """Create or change the schedule that `row_at` makes of the database's time. Returns it as it is stored then."""
    ((now,),) = yield Statement("clock")
    row = row_at(instant(now))
    given = {**row._asdict(), "input": Json(row.input), "next_at": microseconds(row.next_at)}
    ((next_at,),) = yield Statement("put_schedule", given)
    return row._replace(next_at=instant(next_at))


@query
def drop(job: str, name: str) -> QuerySteps[bool]:
    """Whether the schedule existed."""
    return bool((yield Statement("drop_schedule", {"job": job, "name": name})))


@query
def all_schedules() -> QuerySteps[list[ScheduleRow]]:
    """All schedules in the database, by job and name."""
    rows = yield Statement("all_schedules")
    return [ScheduleRow._make([*about, instant(next_at)]) for *about, next_at in rows]


async def upcoming(session: ReconnectingConnection, jobs: Sequence[str], within: float) -> list[Upcoming]:
    """The schedules of these jobs that are due `within` this many seconds, the earliest first."""
    parameters = {"jobs": list(jobs), "within": within, "limit": _LIMIT}
    rows = await session.fetch("upcoming_schedules", parameters)
    return [Upcoming._make([*about, instant(next_at), instant(now)]) for *about, next_at, now in rows]


async def fire(
    session: ReconnectingConnection,
    schedule: Upcoming,
    runs: Sequence[tuple[UUID, datetime]],
    following: datetime,
    step: str,
    placement: Placement,
) -> int | None:
    """Enqueue these runs (id, slot) and move the schedule on to the following slot, in one transaction.

    Returns the number of runs enqueued: 0 if a run of a schedule without overlap is live, or if a live run has the
    unique key. Returns None if the schedule was not moved on: another supervisor was faster, the schedule has been
    changed since it was read, or a transaction that is still open has enqueued a run with the unique key.
    """
    parameters = {
        "job": schedule.job,
        "name": schedule.name,
        "cron": schedule.cron,
        "zone": schedule.zone,
        "catch_up": schedule.catch_up,
        "next_at": microseconds(schedule.next_at),
        "following": microseconds(following),
        "ids": UUIDs(run for run, _ in runs),
        "slots": Int8s(microseconds(slot) for _, slot in runs),
        "step": step,
        "queue": placement.queue,
        "priority": placement.priority,
        "keep": placement.keep.total_seconds(),
        "delay": placement.delay.total_seconds(),
        "unique_key": placement.unique_key,
        "concurrency_key": placement.concurrency_key,
        "concurrency_limit": placement.concurrency_limit if placement.keyed else None,
    }
    rows = await session.fetch("fire_schedule", parameters)
    return int(rows[0][0]) if rows else None
