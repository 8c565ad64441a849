"""`underway replay`."""

import click

from underway.cli.in_app.process import exec_in_app
from underway.cli.options.database import database_option


@click.command("replay", short_help="Run the current step of a run by hand.")
@click.argument("app")
@click.argument("run")
@click.option("--pdb", "debug", is_flag=True, help="Open the debugger where the step raises.")
@database_option
def replay(app: str, run: str, debug: bool, database: str | None) -> None:
    """Run the current or failed step of RUN in this process.

    The step gets its stored input and runs in the foreground, without a
    supervisor and without limits. Nothing is committed: cx.tx is rolled back,
    runs given to cx.enqueue are only printed, and RUN stays unchanged. Other
    side effects of the step do happen.

    RUN is a run ID or unique prefix. Exits with code 1 if the attempt fails.
    Without --database, the database is the app's own.
    """
    exec_in_app("underway.cli.in_app.replay", app, run, *(["--pdb"] if debug else []), database=database)
