"""`underway resume`."""

import click

from underway.cli.commands.pause import unknown_queue
from underway.cli.options.database import connect, database_option
from underway.cli.options.json import json_option
from underway.cli.output.printing import print_note, print_result
from underway.postgres import admin_queries, inspection


@click.command("resume", short_help="Resume a paused queue.")
@click.argument("queue")
@database_option
@json_option
def resume(queue: str, database: str | None, as_json: bool) -> None:
    """Resume a paused queue."""
    with connect(database) as connection:
        changed = admin_queries.resume(connection, queue)
        known = changed or inspection.knows_queue(connection, queue)
        others = set() if known else inspection.known_queues(connection) - {queue}
    text = f"resumed queue {queue}" if changed else f"queue {queue} was not paused"
    print_result({"queue": queue, "paused": False, "changed": changed, "known": known}, text, as_json)
    if not known:
        print_note(unknown_queue(queue, others))
