"""The command underway: everything but supervising."""

import io
import os
import sys

import click

from underway.app import Underway
from underway.cli.commands import cancel, dead_letters, health, quarantine, queues, replay, schedules, show, supervisors
from underway.cli.commands import list as listing
from underway.cli.in_app.process import go_on_in
from underway.cli.options.database import Commands, database_option
from underway.cli.output.documents import json_option, print_done

_EPILOG = """\b
Exit codes:
  0  done
  1  it could not be done, and the message says why
  2  wrong options
  3  shutdown --wait: asked, but not gone in time
"""


@click.group(cls=Commands, epilog=_EPILOG, context_settings={"max_content_width": 80})
@click.version_option(package_name="underway")
@click.pass_context
def main(context: click.Context) -> None:
    """Durable step functions on Postgres.

    The database is --database, else UNDERWAY_DATABASE_URL, else DATABASE_URL.
    """
    if os.environ.get("NO_COLOR"):
        context.color = False
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a name gets a question mark


@main.command()
@database_option
@json_option
def migrate(database: str | None, as_json: bool) -> None:
    """Create or update the schema `underway`. Safe to repeat."""
    applied = Underway(database).migrate()
    text = "\n".join(f"applied {name}" for name in applied) or "the schema is up to date"
    print_done({"applied": applied}, text, as_json)


@main.command(short_help="Register the jobs of APP for `select underway.enqueue(...)`.")
@click.argument("app")
@database_option
def sync(app: str, database: str | None) -> None:
    """Register the jobs of APP, so that `select underway.enqueue(...)` knows them.

    A running supervisor does this at its start.
    """
    go_on_in("underway.cli.in_app.sync", app, database=database)


for command in (
    *(listing.list_runs, show.show, show.attempts, cancel.cancel, cancel.retry),
    *(queues.queues, queues.pause, queues.resume),
    *(supervisors.supervisors, supervisors.shutdown, health.health),
    schedules.schedules,
    *(dead_letters.dead_letters, dead_letters.redrive, dead_letters.discard),
    quarantine.quarantine,
    replay.replay,
):
    main.add_command(command)


@main.group()
def db() -> None:
    """The embedded Postgres (the database `embedded:`)."""


@db.command()
@json_option
def stop(as_json: bool) -> None:
    """Stop it. Its data stays."""
    from underway.postgres import embedded

    stopped = embedded.stop()
    print_done({"stopped": stopped}, "stopped" if stopped else "it was not running", as_json)


@db.command()
@json_option
def url(as_json: bool) -> None:
    """Print its address, starting it if need be: for psql."""
    from underway.postgres import embedded

    address = embedded.url()
    print_done({"url": address}, address, as_json)


if __name__ == "__main__":
    main()
