"""`underway supervisors`."""

from datetime import datetime

import click

from underway.cli.options.database import connect, database_option
from underway.cli.options.json import json_option
from underway.cli.output.format import age
from underway.cli.output.printing import print_table
from underway.cli.output.table import Column
from underway.postgres import client_queries, inspection


@click.command("supervisors", short_help="List the supervisors of this database.")
@database_option
@json_option
def supervisors(database: str | None, as_json: bool) -> None:
    """List the supervisors of this database and their runs in progress.

    A silent supervisor has sent no heartbeat for half a minute: it was killed,
    or cannot connect to the database. SEEN is the time since its last
    heartbeat; after ten minutes it is removed. The workers of an unhealthy
    supervisor do not boot; TROUBLE gives the reason.
    """
    with connect(database) as connection:
        found = inspection.list_supervisors(connection)
        now = client_queries.clock(connection)
    print_table(found, _columns(now), as_json, empty="no supervisors")


def _columns(now: datetime) -> list[Column[inspection.SupervisorRow]]:
    return [
        Column("ID", lambda supervisor: supervisor["id"][:8]),
        Column("STATE", lambda supervisor: supervisor["state"]),
        Column("IN PROGRESS", lambda supervisor: f"{supervisor['in_progress']:,}", right=True),
        Column("UP", lambda supervisor: age(supervisor["started_at"], now), right=True),
        Column("SEEN", lambda supervisor: age(supervisor["seen_at"], now), right=True),
        Column("HOST:PID", lambda supervisor: f"{supervisor['host']}:{supervisor['pid']}", shrinks_to=12),
        Column("APP", lambda supervisor: supervisor["app"], shrinks_to=10),
        Column("TROUBLE", lambda supervisor: supervisor["trouble"], shrinks_to=20),
    ]
