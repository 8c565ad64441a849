"""underway list."""

from datetime import datetime

import click

from underway.cli.database import connect, database_option
from underway.cli.output import json_option, print_rows
from underway.cli.table import Column, Row
from underway.cli.words import age, charges, headline, progress
from underway.client import Status
from underway.postgres import people, runs


@click.command(
    "list",
    short_help="The newest runs.",
    help=f"""List the newest runs, live and finished.

    With a filter, of the finished runs the newest {people.LOOKED_AT:,} are looked at.
    """,
)
@click.option(
    "--state",
    type=click.Choice([status.value for status in Status]),
    metavar="STATE",
    help=f"One of {', '.join(Status)}.",
)
@click.option("--job", metavar="JOB", help="Runs of this job.")
@click.option("--queue", metavar="QUEUE", help="Runs in this queue.")
@click.option("--stranded", is_flag=True, help="Pending runs that no living supervisor serves.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="So many at most.")
@database_option
@json_option
def list_runs(
    state: str | None,
    job: str | None,
    queue: str | None,
    stranded: bool,
    limit: int,
    database: str | None,
    as_json: bool,
) -> None:
    with connect(database) as connection:
        found = people.list_runs(connection, state=state, job=job, queue=queue, stranded=stranded, limit=limit)
        columns = _columns(runs.clock(connection))
        searched = not stranded and (state is None or Status(state).final)
        cut = searched and len(found) < limit and not people.all_looked_at(connection, state)
    print_rows(found, columns, as_json, none="no runs")
    if cut:
        kind = state if state is not None and Status(state) is not Status.SUCCEEDED else "finished"
        click.echo(f"looked at the newest {people.LOOKED_AT:,} {kind} runs only", err=True)


def _columns(now: datetime) -> list[Column]:
    return [
        Column("ID", lambda run: run["id"]),
        Column("STATE", lambda run: run["state"]),
        Column("AGE", lambda run: age(run["created_at"], now), right=True),
        Column("JOB", lambda run: run["job"], shrinks_to=8),
        Column("STEP", lambda run: run["step"], shrinks_to=8),
        Column("QUEUE", lambda run: run["queue"], shrinks_to=8, extra=True),
        Column("NOTE", lambda run: _note(run, now), shrinks_to=24, extra=True),
    ]


def _note(run: Row, now: datetime) -> str:
    """The one thing to know of a run at a glance."""
    if run["cancel_requested"]:
        return "being cancelled"
    if run["state"] == "failed":
        return headline(run["error"])
    if run["state"] == "waiting":
        return f"due {age(run['due_at'], now)}" if run["due_at"] else "until its key is free"
    if run["progress"]:
        return progress(run["progress"])
    return charges(run)
