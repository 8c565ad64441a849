"""`underway retry`, and the retry of one run for the commands that share it."""

from uuid import UUID

import click
import orjson

from underway.cli.options.database import Connection, connect, database_option
from underway.cli.options.json import json_option
from underway.cli.options.resolve import deleted_meanwhile, resolve_run
from underway.cli.output.printing import print_result
from underway.client.run_state import Status
from underway.postgres import admin_queries, inspection
from underway.printable import printable


@click.command("retry", short_help="Retry a failed run.")
@click.argument("run")
@click.option("--input", "new_input", metavar="JSON", help="Replace the input of the failed step.")
@database_option
@json_option
def retry(run: str, new_input: str | None, database: str | None, as_json: bool) -> None:
    """Retry a failed run from the step that failed.

    RUN is a run ID or unique prefix. All counters of the run are reset. An
    input that does not fit the step fails the next attempt. A cancelled run
    cannot be retried: enqueue its input as a new run.
    """
    with connect(database) as connection:
        run_id, step = retry_run(connection, run, new_input)
    print_result({"id": run_id, "step": step}, f"retrying {run_id} from step {step}", as_json)


def retry_run(connection: Connection, prefix: str, new_input: str | None = None) -> tuple[UUID, str]:
    """Retry one failed run and return its ID and step. Raises ClickException if that is impossible."""
    run_id = resolve_run(connection, prefix)
    payload = None if new_input is None else _checked_json(new_input)
    # Read first: the run may reach its next step right after the redrive.
    found = inspection.run_details(connection, run_id)
    if found is None:
        raise deleted_meanwhile(run_id)
    if not admin_queries.redrive(connection, run_id, payload):
        raise click.ClickException(f"cannot retry run {run_id}: {_reason(found)}")
    return run_id, found["step"]


def _reason(run: inspection.RunDetails) -> str:
    if run["state"] == Status.FAILED:
        return f"another live run of {printable(run['job'])} has its unique key {run['unique_key']!r}"
    return f"its state is {run['state']}, expected failed"


def _checked_json(text: str) -> bytes:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise click.UsageError(f"--input is not valid JSON: {error}") from None
    return text.encode()
