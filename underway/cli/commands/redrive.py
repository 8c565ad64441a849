"""`underway redrive`."""

import click

from underway.cli.commands.retry import retry_run
from underway.cli.options.database import connect, database_option
from underway.cli.options.json import json_option
from underway.cli.options.resolve import reject_run_id
from underway.cli.output.format import count
from underway.cli.output.printing import print_result
from underway.postgres import admin_queries


@click.command("redrive", short_help="Retry dead letters.")
@click.argument("run", required=False)
@click.option("--label", metavar="LABEL", help="Retry all runs with this dead-letter label.")
@click.option("--limit", type=click.IntRange(1), help="With --label: maximum number of runs, oldest first.")
@click.option("--input", "new_input", metavar="JSON", help="With RUN: replace the input of the failed step.")
@database_option
@json_option
def redrive(
    run: str | None, label: str | None, limit: int | None, new_input: str | None, database: str | None, as_json: bool
) -> None:
    """Retry a failed run, or all runs with a dead-letter label.

    Each run continues at the step that failed. `underway redrive RUN` is the
    same as `underway retry RUN`.
    """
    if (run is None) == (label is None):
        raise click.UsageError("specify either RUN or --label")
    if label is None and limit is not None:
        raise click.UsageError("--limit requires --label")
    if label is not None and new_input is not None:
        raise click.UsageError("--input requires RUN")
    reject_run_id(label, "a dead-letter label", "underway redrive")
    with connect(database) as connection:
        if run is not None:
            run_id, _ = retry_run(connection, run, new_input)
            print_result({"id": run_id, "redriven": 1}, f"redrove {run_id}", as_json)
        elif label is not None:
            redriven = admin_queries.redrive_label(connection, label, limit)
            if not redriven:
                admin_queries.refuse_unknown_label(connection, label)
            print_result({"label": label, "redriven": redriven}, f"redrove {count(redriven, 'run')}", as_json)
