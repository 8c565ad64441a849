"""The command `underway-supervisor`."""

import logging
import sys
import textwrap

import click

from underway.cli.hide_password import hide_password
from underway.cli.options.units import Seconds, parse_size
from underway.supervisor.exit_codes import EXIT_CODES
from underway.supervisor.logs import format as logs
from underway.supervisor.main import Settings, supervise
from underway.supervisor.workers.recycle import RecycleLimits

_EPILOG = "\b\nExit codes:\n" + "\n".join(
    textwrap.fill(f"  {code:d}  {code.name.lower().replace('_', '-')}: {text}", 76, subsequent_indent="     ")
    for code, text in EXIT_CODES.items()
)


@click.command(epilog=_EPILOG, context_settings={"max_content_width": 80})
@click.argument("app")
@click.option("--procs", type=click.IntRange(1), default=2, show_default=True, help="Number of worker processes.")
@click.option("--database", metavar="URL", help='A connection string, or "embedded:"; default: the database of APP.')
@click.option(
    "--grace",
    type=Seconds(0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long running steps may take to finish when the supervisor stops.",
)
@click.option("--max-tasks", type=click.IntRange(1), metavar="N", help="Replace a worker after N tasks.")
@click.option(
    "--max-age", type=Seconds(0, min_open=True), metavar="SECONDS", help="Replace a worker after this time in service."
)
@click.option(
    "--max-memory",
    callback=parse_size,
    metavar="SIZE",
    help='Replace a worker that uses more memory than this, child processes included: bytes, or "1 GiB".',
)
@click.option(
    "--output-limit",
    callback=parse_size,
    default="1 MiB",
    show_default=True,
    metavar="SIZE",
    help="Maximum output and logs of an attempt; the rest is dropped.",
)
@click.option("--until-idle", is_flag=True, help="Stop when no run is pending, in progress or due for a retry.")
@click.option(
    "--log-format", type=click.Choice(["human", "json"]), default="human", show_default=True, help="Format of the log."
)
@click.option("--verbose", is_flag=True, help="Log debug messages.")
@click.version_option(package_name="underway")
def main(
    app: str,
    procs: int,
    database: str | None,
    grace: float,
    max_tasks: int | None,
    max_age: float | None,
    max_memory: int | None,
    output_limit: int,
    until_idle: bool,
    log_format: str,
    verbose: bool,
) -> None:
    """Run the jobs of APP (module:attribute or path/to/file.py:attribute) in a pool of worker processes.

    SIGTERM and SIGINT finish running steps, then stop. A second one, or
    SIGQUIT, stops immediately. Unfinished steps are released to other
    supervisors. SIGHUP reloads APP: each worker is replaced between two tasks,
    one worker at a time, by one that has imported the new code.
    """
    hide_password(database)
    logs.configure(json=log_format == "json", level=logging.DEBUG if verbose else logging.INFO)
    limits = RecycleLimits(max_tasks, max_age, max_memory)
    sys.exit(supervise(Settings(app, procs, database, grace, until_idle, limits, output_limit)))


if __name__ == "__main__":
    main()
