"""The command `underway`."""

import io
import os
import sys

import click

from underway.cli.commands.attempts import attempts
from underway.cli.commands.cancel import cancel
from underway.cli.commands.db import db
from underway.cli.commands.dead_letters import dead_letters
from underway.cli.commands.discard import discard
from underway.cli.commands.health import health
from underway.cli.commands.list_runs import list_runs
from underway.cli.commands.migrate import migrate
from underway.cli.commands.pause import pause
from underway.cli.commands.quarantine import quarantine
from underway.cli.commands.queues import queues
from underway.cli.commands.redrive import redrive
from underway.cli.commands.replay import replay
from underway.cli.commands.resume import resume
from underway.cli.commands.retry import retry
from underway.cli.commands.schedules import schedules
from underway.cli.commands.show import show
from underway.cli.commands.shutdown import shutdown
from underway.cli.commands.supervisors import supervisors
from underway.cli.commands.sync import sync
from underway.cli.errors import CommandGroup

_EPILOG = """\b
Exit codes:
  0  success
  1  failure; the message on stderr gives the reason
  2  invalid usage
  3  shutdown --wait: a supervisor was still running at the end of the wait
"""


@click.group(cls=CommandGroup, epilog=_EPILOG, context_settings={"max_content_width": 80})
@click.version_option(package_name="underway")
@click.pass_context
def main(context: click.Context) -> None:
    """Inspect and control durable jobs on Postgres.

    The database is --database, else UNDERWAY_DATABASE_URL, else DATABASE_URL.
    """
    if os.environ.get("NO_COLOR"):
        context.color = False
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # print a question mark for what the terminal cannot encode


for command in (
    *(list_runs, show, attempts, cancel, retry),
    *(queues, pause, resume),
    *(supervisors, shutdown, health),
    schedules,
    *(dead_letters, redrive, discard, quarantine),
    *(migrate, sync, replay, db),
):
    main.add_command(command)


if __name__ == "__main__":
    main()
