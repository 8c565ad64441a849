"""`underway attempts`, and the table of attempts that `underway show` shares."""

import click

from underway.cli.options.database import connect, database_option
from underway.cli.options.json import json_option
from underway.cli.options.resolve import resolve_run
from underway.cli.output.format import death_reason, duration, size
from underway.cli.output.printing import print_table
from underway.cli.output.table import Column
from underway.postgres import inspection
from underway.postgres.inspection import AttemptDetails


@click.command("attempts", short_help="List the attempts of a run.")
@click.argument("run")
@database_option
@json_option
def attempts(run: str, database: str | None, as_json: bool) -> None:
    """List the finished attempts of a run, oldest first.

    RUN is a run ID or unique prefix.
    """
    with connect(database) as connection:
        found = inspection.list_attempts(connection, resolve_run(connection, run))
    print_table(found, ATTEMPT_COLUMNS, as_json, empty="no finished attempts")


def _duration(attempt: AttemptDetails) -> str:
    if attempt["started_at"] is None:
        return ""
    return duration(attempt["finished_at"] - attempt["started_at"])


def _worker(attempt: AttemptDetails) -> str:
    return f"{attempt['host'] or ''}:{attempt['pid'] or ''}".strip(":")


ATTEMPT_COLUMNS: list[Column[AttemptDetails]] = [
    Column("STEP", lambda attempt: attempt["step"], shrinks_to=8),
    Column("NO", lambda attempt: attempt["number"], right=True),
    Column("OUTCOME", lambda attempt: attempt["outcome"]),
    Column("ENDED", lambda attempt: f"{attempt['finished_at']:%m-%d %H:%M:%S}"),
    Column("TOOK", _duration, right=True),
    Column("CPU", lambda attempt: duration(attempt["cpu_seconds"]), right=True),
    Column("MEMORY", lambda attempt: size(attempt["peak_rss"]), right=True),
    Column("ERROR", lambda attempt: death_reason(attempt["error"]), shrinks_to=12, optional=True),
    Column("WORKER", _worker, optional=True),
]
