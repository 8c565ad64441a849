"""underway dead-letters, redrive, discard: runs that failed for good and wait for somebody."""

from datetime import datetime

import click

from underway import codec
from underway.cli.database import connect, database_option
from underway.cli.ending import redrive_one
from underway.cli.find import find_run, refuse_id
from underway.cli.output import json_option, print_done, print_rows
from underway.cli.table import Column
from underway.cli.words import age, count, headline
from underway.postgres import control, people, runs

_DEAD_LETTER = ("id", "job", "step", "queue", "error", "input", "finished_at", "attempts", "crashes")


@click.command("dead-letters", short_help="Failed runs that wait for somebody.")
@click.argument("label", required=False)
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="So many runs at most.")
@database_option
@json_option
def dead_letters(label: str | None, limit: int, database: str | None, as_json: bool) -> None:
    """List the dead-letter labels, or the runs with one LABEL, the oldest first."""
    refuse_id(label, "a label", "underway show")
    with connect(database) as connection:
        now = runs.clock(connection)
        if label is None:
            print_rows(people.dead_letter_labels(connection), _label_columns(now), as_json, none="no dead letters")
            return
        rows = control.dead_letters(connection, label, limit)
        known = set() if rows else control.known_labels(connection)
    found = [dict(zip(_DEAD_LETTER, row, strict=True)) for row in rows]
    for run in found:
        run["input"] = codec.decode_plain(run["input"])
    none = f"no run has the label {label!r}" + ("" if label in known else f"; {control.existing(known)}")
    print_rows(found, _run_columns(now), as_json, none=none)


def _label_columns(now: datetime) -> list[Column]:
    return [
        Column("LABEL", lambda label: label["label"], shrinks_to=10),
        Column("RUNS", lambda label: f"{label['runs']:,}", right=True),
        Column("NEWEST", lambda label: age(label["newest"], now), right=True),
        Column("OLDEST", lambda label: age(label["oldest"], now), right=True),
    ]


def _run_columns(now: datetime) -> list[Column]:
    return [
        Column("ID", lambda run: run["id"]),
        Column("FAILED", lambda run: age(run["finished_at"], now), right=True),
        Column("JOB", lambda run: run["job"], shrinks_to=8),
        Column("STEP", lambda run: run["step"], shrinks_to=8),
        Column("ERROR", lambda run: headline(run["error"]), shrinks_to=12, extra=True),
    ]


@click.command("redrive", short_help="Let dead letters go on.")
@click.argument("run", required=False)
@click.option("--label", metavar="LABEL", help="All runs with this dead-letter label.")
@click.option("--limit", type=click.IntRange(1), help="Of those so many at most, the oldest first.")
@click.option("--input", "given", metavar="JSON", help="For one run: another input for the step that failed.")
@database_option
@json_option
def redrive(
    run: str | None, label: str | None, limit: int | None, given: str | None, database: str | None, as_json: bool
) -> None:
    """Let one failed run go on at the step that failed, or all with a label.

    For one RUN it is the same as retry.
    """
    if (run is None) == (label is None):
        raise click.UsageError("give a RUN, or --label LABEL")
    if label is None and limit is not None:
        raise click.UsageError("--limit needs --label LABEL")
    if label is not None and given is not None:
        raise click.UsageError("--input is for one RUN")
    refuse_id(label, "a label", "underway redrive")
    with connect(database) as connection:
        if run is not None:
            run_id, _ = redrive_one(connection, run, given)
            print_done({"id": run_id, "redriven": 1}, f"redrove {run_id}", as_json)
        elif label is not None:
            redriven = control.redrive_label(connection, label, limit)
            if not redriven:
                control.refuse_unknown_label(connection, label)
            print_done({"label": label, "redriven": redriven}, f"redrove {count(redriven, 'run')}", as_json)


@click.command("discard", short_help="Take the label off dead letters.")
@click.argument("run", required=False)
@click.option("--label", metavar="LABEL", help="All runs with this dead-letter label.")
@database_option
@json_option
def discard(run: str | None, label: str | None, database: str | None, as_json: bool) -> None:
    """Take the dead-letter label off one run, or off all that have it.

    They stay failed and can be looked at until their keep has passed.
    """
    if (run is None) == (label is None):
        raise click.UsageError("give a RUN, or --label LABEL")
    refuse_id(label, "a label", "underway discard")
    with connect(database) as connection:
        if run is not None:
            run_id = find_run(connection, run)
            if not control.discard(connection, run_id):
                raise click.ClickException(f"run {run_id} has no dead-letter label")
            print_done({"id": run_id, "discarded": 1}, f"discarded {run_id}", as_json)
        elif label is not None:
            discarded = control.discard_label(connection, label)
            if not discarded:
                control.refuse_unknown_label(connection, label)
            print_done({"label": label, "discarded": discarded}, f"discarded {count(discarded, 'run')}", as_json)
