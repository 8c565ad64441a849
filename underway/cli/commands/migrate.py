"""`underway migrate`."""

import click

from underway.app import Underway
from underway.cli.options.database import database_option
from underway.cli.options.json import json_option
from underway.cli.output.printing import print_result


@click.command("migrate")
@database_option
@json_option
def migrate(database: str | None, as_json: bool) -> None:
    """Create or update the schema `underway`. Safe to repeat."""
    applied = Underway(database).migrate()
    text = "\n".join(f"applied {name}" for name in applied) or "the schema is up to date"
    print_result({"applied": applied}, text, as_json)
