"""`underway shutdown`."""

import sys
import time
from datetime import datetime
from uuid import UUID

import click

from underway.cli.options.database import Connection, connect, database_option
from underway.cli.options.json import json_option
from underway.cli.options.resolve import resolve_supervisor
from underway.cli.options.units import Seconds
from underway.cli.output.format import age, count
from underway.cli.output.printing import print_json
from underway.postgres import admin_queries, client_queries, inspection
from underway.postgres.inspection import SupervisorRow

SHUTDOWN_TIMED_OUT = 3

_POLL_SECONDS = 0.1


@click.command("shutdown", short_help="Ask supervisors to stop.")
@click.argument("supervisor", required=False)
@click.option("--all", "all_supervisors", is_flag=True, help="Stop all supervisors of this database.")
@click.option("--wait", type=Seconds(0), default=0.0, metavar="SECONDS", help="Wait up to this long for them to stop.")
@database_option
@json_option
def shutdown(supervisor: str | None, all_supervisors: bool, wait: float, database: str | None, as_json: bool) -> None:
    """Ask a supervisor, or all, to finish running steps and stop, as on SIGTERM.

    SUPERVISOR is a supervisor ID or unique prefix. Without --wait, the command
    returns at once. Exit code 3 means that a supervisor was still running at
    the end of the wait. A silent supervisor is not waited for: it was killed,
    or cannot connect to the database.
    """
    if (supervisor is None) == (not all_supervisors):
        raise click.UsageError("specify either SUPERVISOR or --all")
    with connect(database) as connection:
        selected = None if supervisor is None else resolve_supervisor(connection, supervisor)
        asked = admin_queries.shut_down(connection, selected)
        remaining = _wait_for_exit(connection, asked, wait) if wait else asked
        present = {id_: row for row in inspection.list_supervisors(connection) if (id_ := UUID(row["id"])) in asked}
        now = client_queries.clock(connection)
    silent = [id_ for id_, label in present.items() if label["state"] == "silent"]
    stopped = [id_ for id_ in asked if id_ not in remaining and id_ not in silent]
    if as_json:
        print_json({"asked": asked, "stopped": stopped, "silent": silent})
    elif not wait:
        click.echo(f"asked {count(len(asked), 'supervisor')} to stop")
    else:
        click.echo(f"{len(stopped)} of {count(len(asked), 'supervisor')} stopped")
        _report_present(present, now, wait)
    sys.exit(SHUTDOWN_TIMED_OUT if wait and remaining else 0)


def _wait_for_exit(connection: Connection, asked: list[UUID], seconds: float) -> list[UUID]:
    """Wait until all have stopped or are silent; return those that are still running at the deadline."""
    deadline = time.monotonic() + seconds
    while (remaining := admin_queries.present(connection, asked)) and time.monotonic() < deadline:
        time.sleep(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))
    return remaining


def _report_present(present: dict[UUID, SupervisorRow], now: datetime, wait: float) -> None:
    for id_, supervisor in present.items():
        text = f"{id_} ({supervisor['state']}, last seen {age(supervisor['seen_at'], now)} ago)"
        if supervisor["state"] == "silent":
            click.echo(f"did not wait for {text}: it was killed, or cannot connect to the database", err=True)
        else:
            click.echo(f"still running after {wait:g} s: {text}", err=True)
