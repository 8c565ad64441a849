"""Fires schedules one statement at a time, as supervisors do."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import psycopg
from db import value
from psycopg.rows import dict_row

from underway.definition.manifest import Placement
from underway.ids import new_id
from underway.postgres import schedule_queries
from underway.postgres.reconnecting import ReconnectingConnection

Connection = psycopg.Connection[Any]

MINUTE = timedelta(minutes=1)
HERE = Placement()


def wait_for(connection: Connection, name: str, next_at: str) -> datetime:
    """Let schedules of this name wait for another slot; returns it."""
    query = f"update underway.schedule set next_at = {next_at} where name = %s returning next_at"
    found: datetime = value(connection, query, [name])
    return found


def runs_of(connection: Connection, name: str = "default") -> list[dict[str, Any]]:
    """The live runs that a schedule has enqueued, by slot."""
    with connection.cursor(row_factory=dict_row) as cursor:
        query = "select * from underway.run where schedule = %s order by scheduled_at"
        return cursor.execute(query, [name]).fetchall()


class Firing:
    """The connections of two supervisors that have both read the same due schedule."""

    def __init__(self, database: str, connection: Connection) -> None:
        self._database = database
        self.connection = connection

    def read(self, job: str = "later") -> schedule_queries.Upcoming:
        found: schedule_queries.Upcoming
        (found,) = self._with_session(lambda session: schedule_queries.upcoming(session, [job], 1.0))
        return found

    def fire(self, schedule: schedule_queries.Upcoming, placement: Placement = HERE, slots: int = 1) -> int | None:
        runs = [(new_id(), schedule.next_at + n * MINUTE) for n in range(slots)]
        following = schedule.next_at + slots * MINUTE
        fired: int | None = self._with_session(
            lambda session: schedule_queries.fire(session, schedule, runs, following, "nothing", placement)
        )
        return fired

    def _with_session(self, use: Callable[[ReconnectingConnection], Any]) -> Any:
        async def main() -> Any:
            session = ReconnectingConnection(self._database)
            try:
                return await use(session)
            finally:
                await session.close()

        return asyncio.run(main())
