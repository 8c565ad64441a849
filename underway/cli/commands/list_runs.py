"""`underway list`."""

from datetime import datetime

import click

from underway.cli.options.database import connect, database_option
from underway.cli.options.json import json_option
from underway.cli.output.format import age, counters, headline, progress
from underway.cli.output.printing import print_note, print_table
from underway.cli.output.table import Column
from underway.client.run_state import Status
from underway.postgres import client_queries, inspection


@click.command(
    "list",
    short_help="List the newest runs.",
    help=f"""List the newest runs, live and finished.

    With a filter, only the newest {inspection.SEARCH_LIMIT:,} finished runs are searched.
    """,
)
@click.option(
    "--state",
    type=click.Choice([status.value for status in Status]),
    metavar="STATE",
    help=f"One of {', '.join(Status)}.",
)
@click.option("--job", metavar="JOB", help="Only runs of this job.")
@click.option("--queue", metavar="QUEUE", help="Only runs in this queue.")
@click.option("--stranded", is_flag=True, help="Only pending runs that no live supervisor serves.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Maximum number of runs.")
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
        runs = inspection.list_runs(connection, state=state, job=job, queue=queue, stranded=stranded, limit=limit)
        columns = _columns(client_queries.clock(connection))
        searches_finished = not stranded and (state is None or Status(state).final)
        incomplete = searches_finished and len(runs) < limit and not inspection.all_looked_at(connection, state)
    print_table(runs, columns, as_json, empty="no runs")
    if incomplete:
        kind = state if state is not None and Status(state) is not Status.SUCCEEDED else "finished"
        print_note(f"searched only the newest {inspection.SEARCH_LIMIT:,} {kind} runs")


def _columns(now: datetime) -> list[Column[inspection.RunSummary]]:
    return [
        Column("ID", lambda run: run["id"]),
        Column("STATE", lambda run: run["state"]),
        Column("AGE", lambda run: age(run["created_at"], now), right=True),
        Column("JOB", lambda run: run["job"], shrinks_to=8),
        Column("STEP", lambda run: run["step"], shrinks_to=8),
        Column("QUEUE", lambda run: run["queue"], shrinks_to=8, optional=True),
        Column("NOTE", lambda run: _note(run, now), shrinks_to=24, optional=True),
    ]


def _note(run: inspection.RunSummary, now: datetime) -> str:
    """The most important fact about a run besides its state."""
    if run["cancel_requested"]:
        return "being cancelled"
    if run["state"] == "failed":
        return headline(run["error"])
    if run["state"] == "waiting":
        return f"due {age(run['due_at'], now)}" if run["due_at"] else "waiting for its key"
    if run["progress"]:
        return progress(run["progress"])
    return counters(run)
