"""The command underway: everything but supervising."""

import subprocess
import sys

import click

from underway.app import Underway
from underway.errors import UnderwayError

_EPILOG = """\b
Exit codes:
  0  done
  1  it could not be done, and the message says why
  2  wrong options
"""


@click.group(epilog=_EPILOG, context_settings={"max_content_width": 80})
@click.version_option(package_name="underway")
def main() -> None:
    """Durable step functions on Postgres.

    The database is --database, else UNDERWAY_DATABASE_URL, else DATABASE_URL.
    """


@main.command()
@click.option("--database", metavar="URL", help="A connection string, or embedded:")
def migrate(database: str | None) -> None:
    """Create or update the schema `underway`. Safe to repeat."""
    try:
        applied = Underway(database).migrate()
    except Exception as error:
        raise _for_people(error) from error
    for name in applied:
        click.echo(f"applied {name}")
    if not applied:
        click.echo("the schema is up to date")


@main.command(short_help="Register the jobs of APP for `select underway.enqueue(...)`.")
@click.argument("app")
def sync(app: str) -> None:
    """Register the jobs of APP, so that `select underway.enqueue(...)` knows them.

    A running supervisor does this at its start.
    """
    # User code runs in a child only: what it prints, starts or breaks is not ours.
    sys.exit(subprocess.run([sys.executable, "-P", "-m", "underway.cli.sync", app], check=False).returncode)


@main.group()
def db() -> None:
    """The embedded Postgres (the database `embedded:`)."""


@db.command()
def stop() -> None:
    """Stop it. Its data stays."""
    from underway.postgres import embedded

    try:
        click.echo("stopped" if embedded.stop() else "it was not running")
    except UnderwayError as error:
        raise _for_people(error) from error


@db.command()
def url() -> None:
    """Print its address, starting it if need be: for psql."""
    from underway.postgres import embedded

    try:
        click.echo(embedded.url())
    except UnderwayError as error:
        raise _for_people(error) from error


def _for_people(error: Exception) -> Exception:
    import psycopg

    if isinstance(error, UnderwayError | psycopg.Error):
        return click.ClickException(str(error).strip())
    return error


if __name__ == "__main__":
    main()
