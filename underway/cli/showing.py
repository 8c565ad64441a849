"""underway show, attempts: one run."""

import json
from dataclasses import asdict
from datetime import datetime
from typing import Any
from uuid import UUID

import click

from underway.cli.database import Connection, connect, database_option
from underway.cli.find import find_run
from underway.cli.output import json_option, print_json, print_rows
from underway.cli.table import Column, Row, render, terminal_width
from underway.cli.words import (
    age,
    charges,
    fitting,
    last_death,
    moment,
    progress,
    seconds,
    size,
    width_of,
)
from underway.client import Attempt, Status
from underway.postgres import people, runs
from underway.printable import printable

# Of an input or a result; --json has all of it.
_MOST_LINES = 60
_LONGEST_LINE = 1000


@click.command("show", short_help="One run: its step, input, attempts and last error.")
@click.argument("run")
@database_option
@json_option
def show(run: str, database: str | None, as_json: bool) -> None:
    """Show one run with its attempts, input and last error.

    RUN is its id, or as much of its beginning as no other has.
    """
    with connect(database) as connection:
        run_id = find_run(connection, run)
        found = people.run(connection, run_id)
        if found is None:
            raise click.ClickException(f"run {run_id} has left just now, after its keep")
        found["attempts_made"] = _attempts(connection, run_id)
        now = runs.clock(connection)
    if as_json:
        print_json(found)
        return
    for line in [*_facts(found, now), *_details(found)]:
        click.echo(line)


@click.command("attempts", short_help="The attempts of a run.")
@click.argument("run")
@database_option
@json_option
def attempts(run: str, database: str | None, as_json: bool) -> None:
    """List the attempts of a run that have ended, the oldest first.

    RUN is its id, or as much of its beginning as no other has.
    """
    with connect(database) as connection:
        made = _attempts(connection, find_run(connection, run))
    print_rows(made, _ATTEMPT_COLUMNS, as_json, none="no attempt has ended")


def _attempts(connection: Connection, run_id: UUID) -> list[Row]:
    return [asdict(Attempt(*row)) for row in runs.attempts(connection, run_id)]


def _took(attempt: Row) -> str:
    if attempt["started_at"] is None:
        return ""
    return seconds(attempt["finished_at"] - attempt["started_at"])


_ATTEMPT_COLUMNS = [
    Column("STEP", lambda attempt: attempt["step"], shrinks_to=8),
    Column("NO", lambda attempt: attempt["number"], right=True),
    Column("OUTCOME", lambda attempt: attempt["outcome"]),
    Column("ENDED", lambda attempt: f"{attempt['finished_at']:%m-%d %H:%M:%S}"),
    Column("TOOK", _took, right=True),
    Column("CPU", lambda attempt: seconds(attempt["cpu_seconds"]), right=True),
    Column("MEMORY", lambda attempt: size(attempt["peak_rss"]), right=True),
    Column("ERROR", lambda attempt: last_death(attempt["error"]), shrinks_to=12, extra=True),
    Column("WORKER", lambda attempt: f"{attempt['host'] or ''}:{attempt['pid'] or ''}".strip(":"), extra=True),
]


def _facts(run: Row, now: datetime) -> list[str]:
    """One line for each that there is something to say of."""

    def when(at: datetime | None) -> str:
        if at is None:
            return ""
        told = age(at, now)
        return f"{moment(at)} ({told if told.startswith('in ') else f'{told} ago'})"

    concurrency_limit = f" (at most {run['concurrency_limit']} at once)" if run["concurrency_limit"] else ""
    supervisor = f"{run['owner']} ({run['host']}:{run['pid']})" if run["host"] else run["owner"]
    facts = {
        "run": run["id"],
        "job": run["job"],
        "step": run["step"],
        "state": f"{run['state']}, being cancelled" if run["cancel_requested"] else run["state"],
        "queue": run["queue"],
        "priority": run["priority"] or "",
        "created": when(run["created_at"]),
        "scheduled for": when(run["scheduled_at"]),
        "due": when(run["due_at"]) if run["state"] == "waiting" else "",
        "finished": when(run["finished_at"]),
        "kept until": when(run["expires_at"]),
        "lease until": when(run["lease_expires_at"]),
        "supervisor": supervisor,
        "progress": progress(run["progress"]),
        "charged": charges(run),
        "unique key": run["unique_key"],
        "key": f"{run['concurrency_key']}{concurrency_limit}" if run["concurrency_key"] else "",
        "dead letter": run["dead_letter"],
        "quarantined": "yes; it goes on by: underway quarantine --release RUN" if run["quarantined"] else "",
    }
    width = terminal_width()
    lines = []
    for name, value in facts.items():
        if text := " ".join(printable(str("" if value is None else value)).split()):
            lines += _wrapped(f"{name:14}{text}", width, 14)
    return lines


def _wrapped(text: str, width: int | None, indent: int) -> list[str]:
    lines = []
    while width is not None and width_of(text) > max(width, 40):
        lines.append(fitting(text, max(width, 40)))
        text = " " * indent + text[len(lines[-1]) :]
    return [*lines, text]


def _details(run: Row) -> list[str]:
    lines: list[str] = []
    if run["state"] != Status.SUCCEEDED:
        lines += ["", "input", *_value(run["input"])]
    else:
        lines += ["", "result", *_value(run["result"])]
    made = run["attempts_made"]
    if made:
        lines += ["", "attempts", *(f"  {line}" for line in _attempt_table(made))]
    if error := run["error"] or next((attempt["error"] for attempt in reversed(made) if attempt["error"]), None):
        title = "error" if run["error"] else "last error"
        lines += ["", title]
        for line in printable(error.rstrip()).expandtabs(8).split("\n"):
            lines += _wrapped(f"  {line}".rstrip(), terminal_width(), 4)
    return lines


def _attempt_table(made: list[Row]) -> list[str]:
    width = terminal_width()
    return render(_ATTEMPT_COLUMNS, made, None if width is None else width - 2)


def _value(value: Any) -> list[str]:
    lines = json.dumps(value, indent=2, ensure_ascii=False).splitlines()
    shown = [f"  {printable(line[:_LONGEST_LINE])}" for line in lines[:_MOST_LINES]]
    if len(lines) > _MOST_LINES or any(len(line) > _LONGEST_LINE for line in lines):
        shown.append("  ... and more: see --json")
    return shown
