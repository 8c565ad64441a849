"""underway supervisors, shutdown."""

import sys
import time
from datetime import datetime
from uuid import UUID

import click

from underway.cli.options.database import Connection, connect, database_option
from underway.cli.options.duration import Seconds
from underway.cli.options.find import find_supervisor
from underway.cli.output.documents import json_option, print_json, print_rows
from underway.cli.output.format import age, count
from underway.cli.output.table import Column
from underway.postgres import admin_queries, client_queries, inspection

SHUTDOWN_TIMED_OUT = 3

_POLL_SECONDS = 0.1


@click.command("supervisors", short_help="Who serves this database.")
@database_option
@json_option
def supervisors(database: str | None, as_json: bool) -> None:
    """List the supervisors of this database and how many runs each has in progress.

    One that is silent has not been heard of for half a minute: it was killed,
    or cannot reach the database. SEEN says since when. It is forgotten after
    ten minutes. One that is unhealthy has workers that do not boot; TROUBLE
    says why.
    """
    with connect(database) as connection:
        found = inspection.list_supervisors(connection)
        now = client_queries.clock(connection)
    print_rows(found, _columns(now), as_json, none="no supervisor")


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


@click.command("shutdown", short_help="Ask supervisors to stop.")
@click.argument("supervisor", required=False)
@click.option("--all", "everyone", is_flag=True, help="All supervisors of this database.")
@click.option("--wait", type=Seconds(0), default=0.0, metavar="SECONDS",
              help="Wait so long until they are gone.")  # fmt: skip
@database_option
@json_option
def shutdown(supervisor: str | None, everyone: bool, wait: float, database: str | None, as_json: bool) -> None:
    """Ask a supervisor, or all, to finish what runs and stop, as TERM does.

    SUPERVISOR is its id, or as much of its beginning as no other has. Without
    --wait nothing is waited for. Exit code 3: asked, but not gone in time. A
    supervisor that is silent is not waited for: it was killed, or cannot reach
    the database.
    """
    if (supervisor is None) == (not everyone):
        raise click.UsageError("give a SUPERVISOR, or --all")
    with connect(database) as connection:
        one = None if supervisor is None else find_supervisor(connection, supervisor)
        asked = admin_queries.shut_down(connection, one)
        left = _still_there(connection, asked, wait) if wait else asked
        labels = {id_: row for row in inspection.list_supervisors(connection) if (id_ := UUID(row["id"])) in asked}
        now = client_queries.clock(connection)
    silent = [id_ for id_, label in labels.items() if label["state"] == "silent"]
    gone = [id_ for id_ in asked if id_ not in left and id_ not in silent]
    if as_json:
        print_json({"asked": asked, "gone": gone, "silent": silent})
    elif not wait:
        click.echo(f"asked {count(len(asked), 'supervisor')} to stop")
    else:
        click.echo(f"{len(gone)} of {count(len(asked), 'supervisor')} gone")
        for id_, label in labels.items():
            seen = f"{id_} ({label['state']}, seen {age(label['seen_at'], now)} ago)"
            if id_ in silent:
                click.echo(f"not waited for: {seen}: it was killed, or cannot reach the database", err=True)
            else:
                click.echo(f"still there after {wait:g} s: {seen}", err=True)
    sys.exit(SHUTDOWN_TIMED_OUT if wait and left else 0)


def _still_there(connection: Connection, asked: list[UUID], seconds: float) -> list[UUID]:
    """Those of them that have not left in time and are not silent."""
    deadline = time.monotonic() + seconds
    while (left := admin_queries.present(connection, asked)) and time.monotonic() < deadline:
        time.sleep(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))
    return left
