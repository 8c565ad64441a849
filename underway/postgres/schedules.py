"""Schedules in Postgres: written and listed by clients, fired by supervisors."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from underway.manifest import Placement
from underway.postgres.asking import Asking, Statement, question
from underway.postgres.columns import Int8s, UUIDs
from underway.postgres.cursors import Json
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


@question
def put(row_at: Callable[[datetime], Row]) -> Asking[Row]:
    """Create or change the schedule that `row_at` makes of the database's time; returns it as it stands then."""
    ((now,),) = yield Statement("clock")
    row = row_at(instant(now))
    given = {**row._asdict(), "input": Json(row.input), "next_at": microseconds(row.next_at)}
    ((next_at,),) = yield Statement("put_schedule", given)
    return row._replace(next_at=instant(next_at))


@question
def drop(job: str, name: str) -> Asking[bool]:
    """Whether there was one."""
    return bool((yield Statement("drop_schedule", {"job": job, "name": name})))


@question
def every() -> Asking[list[Row]]:
    rows = yield Statement("all_schedules")
    return [Row._make([*about, instant(next_at)]) for *about, next_at in rows]


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
) -> int | None:
    """Enqueue these runs (id, slot) and wait for the slot that follows, in one transaction; how many were enqueued.

    None is while a run of the schedule is live and it does not overlap, and none where a live run has the unique key.
    None if nothing was done at all: another supervisor was faster, the schedule has been changed since it was read, or
    a transaction that is still open has enqueued a run with the unique key.
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
