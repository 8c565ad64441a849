"""underway quarantine: runs that were put aside because they kill their process."""

from datetime import datetime

import click

from underway.cli.database import Connection, connect, database_option
from underway.cli.ending import redrive_one
from underway.cli.find import find_run, note_unknown_job, refuse_id
from underway.cli.output import json_option, print_done, print_rows
from underway.cli.table import Column
from underway.cli.words import age, count, last_death, size
from underway.postgres import control, people, runs


@click.command("quarantine", short_help="Runs put aside because they kill their process.")
@click.argument("run", required=False)
@click.option("--release", is_flag=True, help="Let RUN go on, or --all of them.")
@click.option("--all", "everything", is_flag=True, help="With --release: all that are quarantined.")
@click.option("--job", metavar="JOB", help="Runs of this job only.")
@click.option("--limit", type=click.IntRange(1), help="So many at most; 20 are listed, all are released.")
@database_option
@json_option
def quarantine(
    run: str | None,
    release: bool,
    everything: bool,
    job: str | None,
    limit: int | None,
    database: str | None,
    as_json: bool,
) -> None:
    """List the quarantined runs, the newest first, or release them.

    A run is quarantined when its process has died max_crashes times. The
    evidence of the last time is in: underway show RUN. Released, it goes on at
    the step that killed, with all its counters at zero.
    """
    if release and (run is None) == (not everything):
        raise click.UsageError("--release needs a RUN, or --all")
    if not release and (run is not None or everything):
        raise click.UsageError("a RUN, or --all, is for --release; one run is shown by underway show RUN")
    if run is not None and (job is not None or limit is not None):
        raise click.UsageError("--job and --limit are for many runs, not for one RUN")
    with connect(database) as connection:
        if run is not None:
            _release_one(connection, run, as_json)
        elif everything:
            released = control.release_quarantined(connection, job, limit)
            if not released:
                refuse_id(job, "a job with such runs", "underway quarantine --release")
                if job is not None:
                    note_unknown_job(connection, job)
            print_done({"job": job, "released": released}, f"released {count(released, 'run')}", as_json)
        else:
            found = people.list_quarantine(connection, job, limit or 20)
            print_rows(found, _columns(runs.clock(connection)), as_json, none="no run is quarantined")


def _release_one(connection: Connection, given: str, as_json: bool) -> None:
    run_id = find_run(connection, given)
    found = people.run(connection, run_id)
    if found is not None and not found["quarantined"]:
        raise click.ClickException(f"run {run_id} is not quarantined: it is {found['state']}")
    _, step = redrive_one(connection, str(run_id), None)
    print_done({"id": run_id, "step": step, "released": 1}, f"released {run_id}, it goes on at step {step}", as_json)


def _columns(now: datetime) -> list[Column]:
    return [
        Column("ID", lambda run: run["id"]),
        Column("AGE", lambda run: age(run["finished_at"], now), right=True),
        Column("JOB", lambda run: run["job"], shrinks_to=8),
        Column("STEP", lambda run: run["step"], shrinks_to=6),
        Column("WHY", lambda run: last_death(run["error"]), shrinks_to=20, extra=True),
        Column("CRASHES", lambda run: run["crashes"], right=True, extra=True),
        Column("MEMORY", lambda run: size(run["peak_rss"]), right=True, extra=True),
    ]
