"""`underway discard`."""

import click

from underway.cli.options.database import connect, database_option
from underway.cli.options.json import json_option
from underway.cli.options.resolve import reject_run_id, resolve_run
from underway.cli.output.format import count
from underway.cli.output.printing import print_result
from underway.postgres import admin_queries


@click.command("discard", short_help="Remove the label of dead letters.")
@click.argument("run", required=False)
@click.option("--label", metavar="LABEL", help="Discard all runs with this dead-letter label.")
@database_option
@json_option
def discard(run: str | None, label: str | None, database: str | None, as_json: bool) -> None:
    """Remove the dead-letter label from a run, or from all runs that have it.

    The runs stay failed, and can be inspected until their retention (keep)
    expires.
    """
    if (run is None) == (label is None):
        raise click.UsageError("specify either RUN or --label")
    reject_run_id(label, "a dead-letter label", "underway discard")
    with connect(database) as connection:
        if run is not None:
            run_id = resolve_run(connection, run)
            if not admin_queries.discard(connection, run_id):
                raise click.ClickException(f"run {run_id} has no dead-letter label")
            print_result({"id": run_id, "discarded": 1}, f"discarded {run_id}", as_json)
        elif label is not None:
            discarded = admin_queries.discard_label(connection, label)
            if not discarded:
                admin_queries.refuse_unknown_label(connection, label)
            print_result({"label": label, "discarded": discarded}, f"discarded {count(discarded, 'run')}", as_json)
