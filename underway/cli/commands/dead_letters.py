"""`underway dead-letters`."""

from datetime import datetime

import click

from underway.cli.options.database import connect, database_option
from underway.cli.options.json import json_option
from underway.cli.options.resolve import reject_run_id
from underway.cli.output.format import age, headline
from underway.cli.output.printing import print_table
from underway.cli.output.table import Column
from underway.postgres import admin_queries, client_queries, inspection


@click.command("dead-letters", short_help="List failed runs that need attention.")
@click.argument("label", required=False)
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Maximum number of runs.")
@database_option
@json_option
def dead_letters(label: str | None, limit: int, database: str | None, as_json: bool) -> None:
    """List dead-letter labels, or the runs with LABEL, oldest first."""
    reject_run_id(label, "a dead-letter label", "underway show")
    with connect(database) as connection:
        now = client_queries.clock(connection)
        if label is None:
            labels = inspection.dead_letter_labels(connection)
            print_table(labels, _label_columns(now), as_json, empty="no dead letters")
            return
        runs = inspection.list_dead_letters(connection, label, limit)
        known_labels = set() if runs else admin_queries.known_labels(connection)
    empty = f"no runs with the dead-letter label {label!r}"
    if label not in known_labels:
        empty = f"unknown dead-letter label {label!r}; {admin_queries.existing(known_labels)}"
    print_table(runs, _run_columns(now), as_json, empty=empty)


def _label_columns(now: datetime) -> list[Column[inspection.LabelRow]]:
    return [
        Column("LABEL", lambda label: label["label"], shrinks_to=10),
        Column("RUNS", lambda label: f"{label['runs']:,}", right=True),
        Column("NEWEST", lambda label: age(label["newest"], now), right=True),
        Column("OLDEST", lambda label: age(label["oldest"], now), right=True),
    ]


def _run_columns(now: datetime) -> list[Column[inspection.DeadLetterDetails]]:
    return [
        Column("ID", lambda run: run["id"]),
        Column("FAILED", lambda run: age(run["finished_at"], now), right=True),
        Column("JOB", lambda run: run["job"], shrinks_to=8),
        Column("STEP", lambda run: run["step"], shrinks_to=8),
        Column("ERROR", lambda run: headline(run["error"]), shrinks_to=12, optional=True),
    ]
