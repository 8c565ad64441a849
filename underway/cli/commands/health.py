"""`underway health`, for container probes and monitoring."""

import socket
import sys
from datetime import datetime, timedelta

import click
import psutil

from underway.cli.errors import EXPECTED_ERRORS, error_message
from underway.cli.options.database import connect, database_option
from underway.cli.options.json import json_option
from underway.cli.options.resolve import resolve_supervisor
from underway.cli.output.format import age, count
from underway.cli.output.printing import print_result
from underway.postgres import client_queries, inspection
from underway.postgres.inspection import SupervisorRow

_RECENT = timedelta(seconds=10)  # two heartbeat intervals


@click.command("health", short_help="Check the supervisors of this host.")
@click.argument("supervisor", required=False)
@database_option
@json_option
def health(supervisor: str | None, database: str | None, as_json: bool) -> None:
    """Check the supervisors of this host, or one SUPERVISOR.

    Exits with code 1 and a reason if there is no supervisor, if one has sent no
    heartbeat for half a minute, if its workers do not boot, or if the database
    cannot be reached. Supervisors that were killed are ignored.
    """
    checked: list[SupervisorRow] = []
    try:
        checked, reason = _check(database, supervisor)
    except EXPECTED_ERRORS as error:
        reason = " ".join(error_message(error).split())
    document = {"healthy": not reason, "reason": reason or None, "supervisors": checked}
    text = f"unhealthy: {reason}" if reason else f"healthy: {count(len(checked), 'supervisor')}"
    print_result(document, text, as_json)
    sys.exit(1 if reason else 0)


def _check(database: str | None, prefix: str | None) -> tuple[list[SupervisorRow], str]:
    """The supervisors that were checked, and the first problem found; "" if there is none."""
    host = socket.gethostname()
    with connect(database) as connection:
        selected = None if prefix is None else str(resolve_supervisor(connection, prefix))
        known = inspection.list_supervisors(connection)
        now = client_queries.clock(connection)
    if selected is None:
        checked = _live_supervisors(known, host, now)
    else:
        checked = [supervisor for supervisor in known if supervisor["id"] == selected]
    if not checked:
        return [], f"no live supervisor on host {host}"
    return checked, next(filter(None, (_problem(supervisor, now) for supervisor in checked)), "")


def _live_supervisors(known: list[SupervisorRow], host: str, now: datetime) -> list[SupervisorRow]:
    """The supervisors of this host, without the rows that killed ones have left behind.

    A recent heartbeat proves that a supervisor lives even if its process is not found: a container may share the
    host's name but not its processes. After a container has restarted, its new supervisor has the PID of the old one:
    the most recently started supervisor with a PID counts.
    """
    by_pid = {supervisor["pid"]: supervisor for supervisor in known if supervisor["host"] == host}  # by start time
    return [
        supervisor
        for supervisor in by_pid.values()
        if now - supervisor["seen_at"] < _RECENT or psutil.pid_exists(supervisor["pid"])
    ]


def _problem(supervisor: SupervisorRow, now: datetime) -> str:
    name = f"supervisor {supervisor['id'][:8]} ({supervisor['host']}:{supervisor['pid']})"
    if supervisor["state"] == "silent":
        return f"{name} was last seen {age(supervisor['seen_at'], now)} ago"
    return f"{name}: {supervisor['trouble']}" if supervisor["trouble"] else ""
