"""The command underway-supervisor."""

import logging
import sys
import textwrap

import click

from underway.cli.hide_password import hide_password
from underway.cli.options.duration import Seconds
from underway.definition.options import checked_size
from underway.errors import InvalidOption
from underway.supervisor.exit_codes import EXIT_CODES
from underway.supervisor.logs import format as logs
from underway.supervisor.main import Settings, supervise
from underway.supervisor.workers.recycle import RecycleLimits

_EPILOG = "\b\nExit codes:\n" + "\n".join(
    textwrap.fill(f"  {code:d}  {code.name.lower().replace('_', '-')}: {text}", 76, subsequent_indent="     ")
    for code, text in EXIT_CODES.items()
)


def _size(_context: click.Context, option: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    try:
        return checked_size("it", int(value) if value.isdigit() else value)
    except InvalidOption as error:
        raise click.BadParameter(str(error)) from None


@click.command(epilog=_EPILOG, context_settings={"max_content_width": 80})
@click.argument("app")
@click.option("--procs", type=click.IntRange(1), default=2, show_default=True, help="Workers that run tasks.")
@click.option("--database", metavar="URL", help="Where the runs are; the app's own database if not given.")
@click.option("--grace", type=Seconds(0), default=30.0, show_default=True, metavar="SECONDS",
              help="How long a stop waits for running steps.")  # fmt: skip
@click.option("--max-tasks", type=click.IntRange(1), metavar="N",
              help="Replace a worker that has run so many tasks.")  # fmt: skip
@click.option("--max-age", type=Seconds(0, min_open=True), metavar="SECONDS",
              help="Replace a worker that has been at work for so long.")  # fmt: skip
@click.option("--max-memory", callback=_size, metavar="SIZE",
              help='Replace a worker that has become so large, with all below it: bytes, or like "1 GiB".')  # fmt: skip
@click.option("--output-limit", callback=_size, default="1 MiB", show_default=True, metavar="SIZE",
              help="Of what an attempt prints and logs, drop what is more.")  # fmt: skip
@click.option("--until-idle", is_flag=True, help="Stop when no run is pending, in progress or due for a retry.")
@click.option("--log-format", type=click.Choice(["human", "json"]), default="human", show_default=True)
@click.option("--verbose", is_flag=True, help="Log more.")
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

    TERM and INT finish what runs and stop; a second one, or QUIT, stops now. What was not finished is released and
    taken up by another supervisor. HUP reloads APP: workers are replaced one after the other, each between two tasks,
    by ones that have imported it anew.
    """
    hide_password(database)
    logs.configure(json=log_format == "json", level=logging.DEBUG if verbose else logging.INFO)
    marks = RecycleLimits(max_tasks, max_age, max_memory)
    sys.exit(supervise(Settings(app, procs, database, grace, until_idle, marks, output_limit)))


if __name__ == "__main__":
    main()
