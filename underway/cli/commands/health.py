"""underway health: for the probes of containers and for monitoring."""

import socket
import sys
from datetime import datetime, timedelta

import click
import psutil
import psycopg

from underway.cli.options.database import connect, database_option
from underway.cli.options.find import find_supervisor
from underway.cli.output.documents import json_option, print_done
from underway.cli.output.format import age, count
from underway.errors import UnderwayError
from underway.postgres import client_queries, inspection
from underway.postgres.inspection import SupervisorRow

_LATE = timedelta(seconds=10)  # two intervals at which a supervisor updates seen_at


@click.command("health", short_help="Whether the supervisors of this host are well.")
@click.argument("supervisor", required=False)
@database_option
@json_option
def health(supervisor: str | None, database: str | None, as_json: bool) -> None:
    """Say whether the supervisors of this host, or one SUPERVISOR, are well.

    Exit code 1, with the reason: there is none, one has been silent for half a
    minute, one has workers that do not boot, or the database cannot be reached.
    One that was killed is left out.
    """
    meant: list[SupervisorRow] = []
    try:
        meant, reason = _look(database, supervisor)
    except (UnderwayError, psycopg.Error) as error:
        reason = " ".join(str(error).split())
    document = {"healthy": not reason, "reason": reason or None, "supervisors": meant}
    text = f"unhealthy: {reason}" if reason else f"healthy: {count(len(meant), 'supervisor')}"
    print_done(document, text, as_json)
    sys.exit(1 if reason else 0)


def _look(database: str | None, supervisor: str | None) -> tuple[list[SupervisorRow], str]:
    """Those that are meant, and what is wrong with the first that is ill."""
    host = socket.gethostname()
    with connect(database) as connection:
        one = None if supervisor is None else str(find_supervisor(connection, supervisor))
        known = inspection.list_supervisors(connection)
        now = client_queries.clock(connection)
    meant = [label for label in known if label["id"] == one] if one is not None else _living(known, host, now)
    if not meant:
        return [], f"no supervisor of host {host} is alive"
    return meant, next(filter(None, (_ill(label, now) for label in meant)), "")


def _living(known: list[SupervisorRow], host: str, now: datetime) -> list[SupervisorRow]:
    """The supervisors of this host, without the rows that killed ones have left behind.

    One that was seen a moment ago is alive even if its process is not found: a container may share the host's name but
    not its processes.

    In a container that was started again the new one has the pid of the old: of several with one pid the last counts.
    """
    newest = {label["pid"]: label for label in known if label["host"] == host}  # in the order of their starts
    return [label for label in newest.values() if now - label["seen_at"] < _LATE or psutil.pid_exists(label["pid"])]


def _ill(label: SupervisorRow, now: datetime) -> str:
    who = f"supervisor {label['id'][:8]} ({label['host']}:{label['pid']})"
    if label["state"] == "silent":
        return f"{who} was last heard of {age(label['seen_at'], now)} ago"
    return f"{who}: {label['trouble']}" if label["trouble"] else ""
