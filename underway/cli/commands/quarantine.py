"""`underway quarantine`."""

from datetime import datetime

import click

from underway.cli.commands.retry import retry_run
from underway.cli.options.database import Connection, connect, database_option
from underway.cli.options.json import json_option
from underway.cli.options.resolve import note_unknown_job, reject_run_id, resolve_run
from underway.cli.output.format import age, count, death_reason, size
from underway.cli.output.printing import print_result, print_table
from underway.cli.output.table import Column
from underway.postgres import admin_queries, client_queries, inspection


@click.command("quarantine", short_help="List or release quarantined runs.")
@click.argument("run", required=False)
@click.option("--release", is_flag=True, help="Release RUN, or with --all all quarantined runs.")
@click.option("--all", "all_runs", is_flag=True, help="With --release: all quarantined runs.")
@click.option("--job", metavar="JOB", help="Only runs of this job.")
@click.option("--limit", type=click.IntRange(1), help="Maximum number of runs; default: list 20, release all.")
@database_option
@json_option
def quarantine(
    run: str | None,
    release: bool,
    all_runs: bool,
    job: str | None,
    limit: int | None,
    database: str | None,
    as_json: bool,
) -> None:
    """List quarantined runs, newest first, or release them.

    A run is quarantined after its worker process has died max_crashes times.
    `underway show RUN` shows the evidence of the last crash. A released run
    continues at the step that crashed, with all its counters reset.
    """
    _check_options(run, release, all_runs, job, limit)
    with connect(database) as connection:
        if run is not None:
            _release_run(connection, run, as_json)
        elif all_runs:
            released = admin_queries.release_quarantined(connection, job, limit)
            if not released:
                reject_run_id(job, "the name of a job with quarantined runs", "underway quarantine --release")
                if job is not None:
                    note_unknown_job(connection, job)
            print_result({"job": job, "released": released}, f"released {count(released, 'run')}", as_json)
        else:
            runs = inspection.list_quarantine(connection, job, limit or 20)
            print_table(runs, _columns(client_queries.clock(connection)), as_json, empty="no quarantined runs")


def _check_options(run: str | None, release: bool, all_runs: bool, job: str | None, limit: int | None) -> None:
    if release and (run is None) == (not all_runs):
        raise click.UsageError("--release requires either RUN or --all")
    if not release and (run is not None or all_runs):
        raise click.UsageError("RUN and --all require --release; to inspect a run, use: underway show RUN")
    if run is not None and (job is not None or limit is not None):
        raise click.UsageError("--job and --limit cannot be used with RUN")


def _release_run(connection: Connection, prefix: str, as_json: bool) -> None:
    run_id = resolve_run(connection, prefix)
    found = inspection.run_details(connection, run_id)
    if found is not None and not found["quarantined"]:
        raise click.ClickException(f"run {run_id} is not quarantined: its state is {found['state']}")
    _, step = retry_run(connection, str(run_id))
    text = f"released {run_id}: retrying from step {step}"
    print_result({"id": run_id, "step": step, "released": 1}, text, as_json)


def _columns(now: datetime) -> list[Column[inspection.QuarantineRow]]:
    return [
        Column("ID", lambda run: run["id"]),
        Column("AGE", lambda run: age(run["finished_at"], now), right=True),
        Column("JOB", lambda run: run["job"], shrinks_to=8),
        Column("STEP", lambda run: run["step"], shrinks_to=6),
        Column("REASON", lambda run: death_reason(run["error"]), shrinks_to=20, optional=True),
        Column("CRASHES", lambda run: run["crashes"], right=True, optional=True),
        Column("MEMORY", lambda run: size(run["peak_rss"]), right=True, optional=True),
    ]
