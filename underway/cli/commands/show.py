"""`underway show`."""

import json
from datetime import datetime
from typing import Any

import click

from underway.cli.commands.attempts import ATTEMPT_COLUMNS
from underway.cli.options.database import connect, database_option
from underway.cli.options.json import json_option
from underway.cli.options.resolve import deleted_meanwhile, resolve_run
from underway.cli.output.format import age, counters, progress, timestamp, truncate, width_of
from underway.cli.output.printing import print_json
from underway.cli.output.table import render, terminal_width
from underway.client.run_state import Status
from underway.postgres import client_queries, inspection
from underway.postgres.inspection import AttemptDetails, RunDetails
from underway.printable import printable

# Limits for an input or a result; --json prints it in full.
_MAX_LINES = 60
_MAX_LINE_LENGTH = 1000

_LABEL_WIDTH = 14
_MIN_WIDTH = 40


@click.command("show", short_help="Show a run: its step, input, attempts and last error.")
@click.argument("run")
@database_option
@json_option
def show(run: str, database: str | None, as_json: bool) -> None:
    """Show a run with its attempts, input and last error.

    RUN is a run ID or unique prefix.
    """
    with connect(database) as connection:
        run_id = resolve_run(connection, run)
        found = inspection.run_details(connection, run_id)
        if found is None:
            raise deleted_meanwhile(run_id)
        made = inspection.list_attempts(connection, run_id)
        now = client_queries.clock(connection)
    if as_json:
        print_json({**found, "attempts_made": made})
        return
    for line in [
        *_fact_lines(_facts(found, now)),
        *_value_lines(found),
        *_attempt_lines(made),
        *_error_lines(found, made),
    ]:
        click.echo(line)


def _facts(run: RunDetails, now: datetime) -> dict[str, Any]:
    limit = f" (limit {run['concurrency_limit']})" if run["concurrency_limit"] else ""
    return {
        "run": run["id"],
        "job": run["job"],
        "step": run["step"],
        "state": f"{run['state']}, being cancelled" if run["cancel_requested"] else run["state"],
        "queue": run["queue"],
        "priority": run["priority"] or "",
        "created": _time(run["created_at"], now),
        "scheduled for": _time(run["scheduled_at"], now),
        "due": _time(run["due_at"], now) if run["state"] == "waiting" else "",
        "finished": _time(run["finished_at"], now),
        "kept until": _time(run["expires_at"], now),
        "lease until": _time(run["lease_expires_at"], now),
        "supervisor": f"{run['owner']} ({run['host']}:{run['pid']})" if run["host"] else run["owner"],
        "progress": progress(run["progress"]),
        "counters": counters(run),
        "unique key": run["unique_key"],
        "key": f"{run['concurrency_key']}{limit}" if run["concurrency_key"] else "",
        "dead letter": run["dead_letter"],
        "quarantined": "yes; to retry: underway quarantine --release RUN" if run["quarantined"] else "",
    }


def _time(at: datetime | None, now: datetime) -> str:
    if at is None:
        return ""
    relative = age(at, now)
    return f"{timestamp(at)} ({relative if relative.startswith('in ') else f'{relative} ago'})"


def _fact_lines(facts: dict[str, Any]) -> list[str]:
    """One line for each fact that has a value, wrapped to the terminal."""
    width = terminal_width()
    lines = []
    for name, value in facts.items():
        if text := " ".join(printable(str("" if value is None else value)).split()):
            lines += _wrap(f"{name:{_LABEL_WIDTH}}{text}", width, _LABEL_WIDTH)
    return lines


def _value_lines(run: RunDetails) -> list[str]:
    """The result of a run that succeeded, else its input."""
    name = "result" if run["state"] == Status.SUCCEEDED else "input"
    lines = json.dumps(run["result"] if name == "result" else run["input"], indent=2, ensure_ascii=False).splitlines()
    shown = [f"  {printable(line[:_MAX_LINE_LENGTH])}" for line in lines[:_MAX_LINES]]
    if len(lines) > _MAX_LINES or any(len(line) > _MAX_LINE_LENGTH for line in lines):
        shown.append("  ... truncated; see --json")
    return ["", name, *shown]


def _attempt_lines(made: list[AttemptDetails]) -> list[str]:
    if not made:
        return []
    width = terminal_width()
    table = render(ATTEMPT_COLUMNS, made, None if width is None else width - 2)
    return ["", "attempts", *(f"  {line}" for line in table)]


def _error_lines(run: RunDetails, made: list[AttemptDetails]) -> list[str]:
    """The error of a run, else that of its last failed attempt."""
    errors = [attempt["error"] for attempt in made if attempt["error"]]
    error = run["error"] or (errors[-1] if errors else None)
    if not error:
        return []
    lines = ["", "error" if run["error"] else "last error"]
    for line in printable(error.rstrip()).expandtabs(8).split("\n"):
        lines += _wrap(f"  {line}".rstrip(), terminal_width(), 4)
    return lines


def _wrap(text: str, width: int | None, indent: int) -> list[str]:
    lines = []
    while width is not None and width_of(text) > max(width, _MIN_WIDTH):
        lines.append(truncate(text, max(width, _MIN_WIDTH)))
        text = " " * indent + text[len(lines[-1]) :]
    return [*lines, text]
