"""underway cancel, retry: ending runs, and letting them go on."""

from uuid import UUID

import click
import orjson

from underway.cli.database import Connection, connect, database_option
from underway.cli.find import find_run, note_unknown_job, refuse_id
from underway.cli.output import json_option, print_done
from underway.cli.words import count
from underway.client import Status
from underway.postgres import control, people, runs
from underway.printable import printable


@click.command("cancel", short_help="Cancel a run, or all of a job.")
@click.argument("run", required=False)
@click.option("--job", metavar="JOB", help="All live runs of this job.")
@click.option("--key", metavar="KEY", help="Of the job, the live run with this unique key.")
@click.option("--concurrency-key", metavar="KEY", help="Of the job, the live runs with this concurrency key.")
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

    RUN is its id, or as much of its beginning as no other has. A run that is
    pending or waiting is cancelled at once. One in progress is stopped first;
    nothing that its step does from now on is kept. It cannot be undone.

    A run has the concurrency key of the step at which it stands. A note says
    how many live runs of the job stand where they have none.
    """
    if (run is None) == (job is None):
        raise click.UsageError("give a RUN, or --job JOB")
    if job is None and (key is not None or concurrency_key is not None):
        raise click.UsageError("a key needs --job JOB")
    if key is not None and concurrency_key is not None:
        raise click.UsageError("give --key or --concurrency-key, not both")
    with connect(database) as connection:
        if run is not None:
            _cancel_one(connection, run, as_json)
        elif job is not None:
            _cancel_many(connection, job, key, concurrency_key, as_json)


def _cancel_many(connection: Connection, job: str, key: str | None, concurrency_key: str | None, as_json: bool) -> None:
    if key is None and concurrency_key is None:
        cancelled = runs.cancel_job(connection, job)
    else:
        cancelled = runs.cancel_key(connection, job, unique_key=key, concurrency_key=concurrency_key)
    if not cancelled:
        refuse_id(job, "a job with such runs", "underway cancel")
        note_unknown_job(connection, job)
    document = {"job": job, "key": key, "concurrency_key": concurrency_key, "cancelled": cancelled}
    if concurrency_key is None:
        print_done(document, f"cancelled {count(cancelled, 'run')}", as_json)
        return
    without_key = runs.without_key(connection, job)
    print_done({**document, "without_key": without_key}, f"cancelled {count(cancelled, 'run')}", as_json)
    if without_key and not as_json:
        where = ", ".join(f"{number:,} at step {step}" for step, number in without_key.items())
        text = f"note: live runs of {job} without any concurrency key were left out: {where}"
        click.echo(printable(text), err=True)


def _cancel_one(connection: Connection, given: str, as_json: bool) -> None:
    run_id = find_run(connection, given)
    done = runs.cancel(connection, run_id)
    state = runs.status(connection, run_id)
    if not done and state != Status.IN_PROGRESS:
        raise click.ClickException(f"run {run_id} cannot be cancelled: it is {state}")
    text = f"cancelled {run_id}"
    if state == Status.IN_PROGRESS:
        text = f"cancelling {run_id}: its step is being stopped"
    print_done({"id": run_id, "state": state}, text, as_json)


@click.command("retry", short_help="Let a failed run go on.")
@click.argument("run")
@click.option("--input", "given", metavar="JSON", help="Another input for the step that failed.")
@database_option
@json_option
def retry(run: str, given: str | None, database: str | None, as_json: bool) -> None:
    """Let a failed run go on at the step that failed.

    RUN is its id, or as much of its beginning as no other has. All its counters
    begin at zero. An input that does not fit the step fails the next attempt.
    A cancelled run stays cancelled: enqueue its input again.
    """
    with connect(database) as connection:
        run_id, step = redrive_one(connection, run, given)
    print_done({"id": run_id, "step": step}, f"{run_id} goes on at step {step}", as_json)


def redrive_one(connection: Connection, given_run: str, given_input: str | None) -> tuple[UUID, str]:
    """The run that goes on, and its step."""
    run_id = find_run(connection, given_run)
    payload = None if given_input is None else _checked_json(given_input)
    # Before: a moment after, it may have gone on to the next.
    found = people.run(connection, run_id)
    if found is None or not control.redrive(connection, run_id, payload):
        raise click.ClickException(f"run {run_id} cannot go on: {_why_not(found)}")
    return run_id, found["step"]


def _why_not(run: people.Row | None) -> str:
    if run is None:
        return "it has left just now, after its keep"
    if run["state"] == Status.FAILED:
        return f"another run of {printable(run['job'])} is live under its key {run['unique_key']!r}"
    return f"it is {run['state']}; only a failed one can"


def _checked_json(text: str) -> bytes:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise click.UsageError(f"--input is no JSON: {error}") from None
    return text.encode()
