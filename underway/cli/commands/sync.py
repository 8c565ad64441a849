"""`underway sync`."""

import click

from underway.cli.in_app.process import exec_in_app
from underway.cli.options.database import database_option


@click.command("sync", short_help="Register the jobs of APP for SQL enqueues.")
@click.argument("app")
@database_option
def sync(app: str, database: str | None) -> None:
    """Register the jobs of APP for `select underway.enqueue(...)`.

    A supervisor does the same when it starts.
    """
    exec_in_app("underway.cli.in_app.sync", app, database=database)
