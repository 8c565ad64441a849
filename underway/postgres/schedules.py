"""Schedules in Postgres: written and listed by clients, fired by supervisors."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from underway.manifest import Placement
from underway.postgres.asking import fetch
from underway.postgres.columns import Int8s, UUIDs
from underway.postgres.runs import instant, microseconds
from underway.postgres.session import Session

# So many are read at a time; the rest at the next look, which follows at once.
_LIMIT = 100


class Row(NamedTuple):
    """A schedule as it stands. `input` is JSON."""

    job: str
    name: str
    cron: str
    zone: str
    catch_up: str
    overlap: bool
    input: str
    next_at: datetime


class Upcoming(NamedTuple):
    """A schedule that is due or soon will be, and what the clock said when it was read."""

    job: str
    name: str
    cron: str
    zone: str
    catch_up: str
    next_at: datetime
    now: datetime


def put(connection: psycopg.Connection[Any], row: Row) -> datetime:
    """Create or change a schedule; returns the slot it waits for."""
    rows = fetch(connection, "put_schedule", {**row._asdict(), "next_at": microseconds(row.next_at)})
    next_at: datetime = instant(rows[0][0])
    return next_at


def drop(connection: psycopg.Connection[Any], job: str, name: str) -> bool:
    """Whether there was one."""
    return bool(fetch(connection, "drop_schedule", {"job": job, "name": name}))


def every(connection: psycopg.Connection[Any]) -> list[Row]:
    return [Row._make([*about, instant(next_at)]) for *about, next_at in fetch(connection, "all_schedules")]


async def upcoming(session: Session, jobs: Sequence[str], within: float) -> list[Upcoming]:
    """The schedules of these jobs that are due within so many seconds, the earliest first."""
    parameters = {"jobs": list(jobs), "within": within, "limit": _LIMIT}
    rows = await session.fetch("upcoming_schedules", parameters)
    return [Upcoming._make([*about, instant(next_at), instant(now)]) for *about, next_at, now in rows]


async def fire(
    session: Session,
    schedule: Upcoming,
    runs: Sequence[tuple[UUID, datetime]],
    following: datetime,
    step: str,
    placement: Placement,
) -> bool | None:
    """Enqueue these runs (id, slot) and wait for the slot that follows, in one transaction.

    False if a run of the schedule is live and it does not overlap: then none is enqueued. None if nothing was done at
    all: another supervisor was faster, or the schedule has been changed since it was read.
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
    }
    rows = await session.fetch("fire_schedule", parameters)
    return bool(rows[0][0]) if rows else None
