"""`underway queues`."""

from datetime import datetime

import click

from underway.cli.options.database import connect, database_option
from underway.cli.options.json import json_option
from underway.cli.output.format import age
from underway.cli.output.printing import print_table
from underway.cli.output.table import Column
from underway.postgres import client_queries, inspection


@click.command("queues", short_help="List queues and their live runs.")
@database_option
@json_option
def queues(database: str | None, as_json: bool) -> None:
    """List all queues with the number of their live runs.

    LATE is the time since the pending run that is most overdue became due.
    """
    with connect(database) as connection:
        found = inspection.list_queues(connection)
        now = client_queries.clock(connection)
    print_table(found, _columns(now), as_json, empty="no queues: no jobs are registered and no runs are live")


def _columns(now: datetime) -> list[Column[inspection.QueueRow]]:
    return [
        Column("QUEUE", lambda queue: queue["queue"], shrinks_to=10),
        Column("STATE", lambda queue: "paused" if queue["paused"] else ""),
        Column("PENDING", lambda queue: f"{queue['pending']:,}", right=True),
        Column("WAITING", lambda queue: f"{queue['waiting']:,}", right=True),
        Column("IN PROGRESS", lambda queue: f"{queue['in_progress']:,}", right=True),
        Column("LATE", lambda queue: age(queue["late_since"], now), right=True),
        Column("DEAD LETTERS", lambda queue: queue["dead_letter"], shrinks_to=12, optional=True),
    ]
