"""`underway cancel`."""

import click

from underway.cli.options.database import Connection, connect, database_option
from underway.cli.options.json import json_option
from underway.cli.options.resolve import note_unknown_job, reject_run_id, resolve_run
from underway.cli.output.format import count
from underway.cli.output.printing import print_note, print_result
from underway.client.run_state import Status
from underway.postgres import client_queries


@click.command("cancel", short_help="Cancel a run, or the live runs of a job.")
@click.argument("run", required=False)
@click.option("--job", metavar="JOB", help="Cancel all live runs of this job.")
@click.option("--key", metavar="KEY", help="With --job: only the run with this unique key.")
@click.option("--concurrency-key", metavar="KEY", help="With --job: only runs with this concurrency key.")
@database_option
@json_option
def cancel(
    run: str | None,
    job: str | None,
    key: str | None,
    concurrency_key: str | None,
    database: str | None,
    as_json: bool,
) -> None:
    """Cancel a run, all live runs of a job, or those with a key.

    RUN is a run ID or unique prefix. A pending or waiting run is cancelled at
    once. A run in progress is interrupted first; from then on, nothing that its
    step does is committed. Cancellation cannot be undone.

    A concurrency key belongs to the current step of a run. If live runs of the
    job are at steps without a concurrency key, a note gives their number.
    """
    if (run is None) == (job is None):
        raise click.UsageError("specify either RUN or --job")
    if job is None and (key is not None or concurrency_key is not None):
        raise click.UsageError("--key and --concurrency-key require --job")
    if key is not None and concurrency_key is not None:
        raise click.UsageError("--key and --concurrency-key are mutually exclusive")
    with connect(database) as connection:
        if run is not None:
            _cancel_run(connection, run, as_json)
        elif job is not None:
            _cancel_runs(connection, job, key, concurrency_key, as_json)


def _cancel_run(connection: Connection, prefix: str, as_json: bool) -> None:
    run_id = resolve_run(connection, prefix)
    cancelled = client_queries.cancel(connection, run_id)
    state = client_queries.status(connection, run_id)
    if not cancelled and state != Status.IN_PROGRESS:
        raise click.ClickException(f"cannot cancel run {run_id}: its state is {state}")
    text = f"cancelled {run_id}"
    if state == Status.IN_PROGRESS:
        text = f"cancelling {run_id}: stopping its step"
    print_result({"id": run_id, "state": state}, text, as_json)


def _cancel_runs(connection: Connection, job: str, key: str | None, concurrency_key: str | None, as_json: bool) -> None:
    if key is None and concurrency_key is None:
        cancelled = client_queries.cancel_job(connection, job)
    else:
        cancelled = client_queries.cancel_key(connection, job, unique_key=key, concurrency_key=concurrency_key)
    if not cancelled:
        reject_run_id(job, "the name of a job with live runs", "underway cancel")
        note_unknown_job(connection, job)
    document = {"job": job, "key": key, "concurrency_key": concurrency_key, "cancelled": cancelled}
    text = f"cancelled {count(cancelled, 'run')}"
    if concurrency_key is None:
        print_result(document, text, as_json)
        return
    without_key = client_queries.without_key(connection, job)
    print_result({**document, "without_key": without_key}, text, as_json)
    if without_key and not as_json:
        skipped = ", ".join(f"{number:,} at step {step}" for step, number in without_key.items())
        print_note(f"skipped live runs of {job} without a concurrency key: {skipped}")
