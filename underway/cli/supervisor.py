"""The command underway-supervisor."""

import logging
import sys
import textwrap

import click

from underway.cli.secrecy import hide_password
from underway.supervisor import logs
from underway.supervisor.shutdown import EXIT_CODES
from underway.supervisor.supervisor import Settings, supervise

_EPILOG = "\b\nExit codes:\n" + "\n".join(
    textwrap.fill(f"  {code:d}  {code.name.lower().replace('_', '-')}: {text}", 76, subsequent_indent="     ")
    for code, text in EXIT_CODES.items()
)


@click.command(epilog=_EPILOG, context_settings={"max_content_width": 80})
@click.argument("app")
@click.option("--procs", type=click.IntRange(1), default=2, show_default=True, help="Workers that run tasks.")
@click.option("--database", metavar="URL", help="Where the runs are; the app's own database if not given.")
@click.option("--grace", type=click.FloatRange(0), default=30.0, show_default=True, metavar="SECONDS",
              help="How long a stop waits for running steps.")  # fmt: skip
@click.option("--until-idle", is_flag=True, help="Stop when no run is pending, in progress or due for a retry.")
@click.option("--log-format", type=click.Choice(["human", "json"]), default="human", show_default=True)
@click.option("--verbose", is_flag=True, help="Log more.")
@click.version_option(package_name="underway")
def main(
    app: str, procs: int, database: str | None, grace: float, until_idle: bool, log_format: str, verbose: bool
) -> None:
    """Run the jobs of APP (module:attribute or path/to/file.py:attribute) in a pool of worker processes.

    TERM and INT finish what runs and stop; a second one, or QUIT, stops now. What was not finished is released and
    taken up by another supervisor.
    """
    hide_password(database)
    logs.configure(json=log_format == "json", level=logging.DEBUG if verbose else logging.INFO)
    sys.exit(supervise(Settings(app, procs, database, grace, until_idle)))


if __name__ == "__main__":
    main()
