"""`underway schedules`."""

from datetime import datetime

import click

from underway.cli.options.database import connect, database_option
from underway.cli.options.json import json_option
from underway.cli.output.format import age
from underway.cli.output.printing import print_table
from underway.cli.output.table import Column
from underway.postgres import client_queries, inspection


@click.command("schedules", short_help="List schedules and their next runs.")
@database_option
@json_option
def schedules(database: str | None, as_json: bool) -> None:
    """List the schedules of all jobs and the time of their next run."""
    with connect(database) as connection:
        found = inspection.list_schedules(connection)
        now = client_queries.clock(connection)
    print_table(found, _columns(now), as_json, empty="no schedules")


def _columns(now: datetime) -> list[Column[inspection.ScheduleDetails]]:
    return [
        Column("JOB", lambda schedule: schedule["job"], shrinks_to=8),
        Column("NAME", lambda schedule: schedule["name"], shrinks_to=7),
        Column("CRON", lambda schedule: schedule["cron"], shrinks_to=10),
        Column("ZONE", lambda schedule: schedule["zone"], shrinks_to=8),
        Column("NEXT", lambda schedule: f"{schedule['next_at']:%Y-%m-%d %H:%M} UTC"),
        Column("", lambda schedule: age(schedule["next_at"], now), optional=True),
        Column("CATCH UP", lambda schedule: schedule["catch_up"], optional=True),
        Column("OVERLAP", lambda schedule: "yes" if schedule["overlap"] else "no", optional=True),
    ]
