"""underway replay: one stored attempt again, by hand."""

import click

from underway.cli.in_app.process import go_on_in
from underway.cli.options.database import database_option


@click.command("replay", short_help="Run the step at which a run stands, by hand.")
@click.argument("app")
@click.argument("run")
@click.option("--pdb", "debug", is_flag=True, help="Open the debugger where the step has raised.")
@database_option
def replay(app: str, run: str, debug: bool, database: str | None) -> None:
    """Run the step at which RUN stands, or has failed, here and now.

    With the input that is stored, in the foreground, without a supervisor. It
    is not handed over: cx.tx is rolled back, what cx.enqueue was given is only
    shown, and the run stays as it is. What the step does elsewhere, it does.
    Nobody enforces its limits.

    RUN is its id, or as much of its beginning as no other has. Exit code 1: the
    attempt failed. The database is the app's own if none is given.
    """
    go_on_in("underway.cli.in_app.replay", app, run, *(["--pdb"] if debug else []), database=database)
