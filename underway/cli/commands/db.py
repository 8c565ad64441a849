"""`underway db`: the embedded Postgres."""

import click

from underway.cli.options.json import json_option
from underway.cli.output.printing import print_result


@click.group("db")
def db() -> None:
    """Manage the embedded Postgres (database `embedded:`)."""


@db.command("stop")
@json_option
def stop(as_json: bool) -> None:
    """Stop the embedded Postgres. Its data is kept."""
    from underway.postgres import embedded

    stopped = embedded.stop()
    print_result({"stopped": stopped}, "stopped" if stopped else "not running", as_json)


@db.command("url")
@json_option
def url(as_json: bool) -> None:
    """Print the URL of the embedded Postgres; start it if necessary."""
    from underway.postgres import embedded

    address = embedded.url()
    print_result({"url": address}, address, as_json)
