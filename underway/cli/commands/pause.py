"""`underway pause`."""

import shlex

import click

from underway.cli.options.database import connect, database_option
from underway.cli.options.json import json_option
from underway.cli.output.printing import print_note, print_result
from underway.postgres import admin_queries, inspection


@click.command("pause", short_help="Pause a queue.")
@click.argument("queue")
@database_option
@json_option
def pause(queue: str, database: str | None, as_json: bool) -> None:
    """Pause a queue: start none of its runs until it is resumed.

    Steps in progress are not interrupted. A queue can be paused before it is
    used for the first time; a note then says that the queue is unknown.
    """
    with connect(database) as connection:
        known = inspection.knows_queue(connection, queue)
        others = set() if known else inspection.known_queues(connection) - {queue}
        changed = admin_queries.pause(connection, queue)
    text = f"paused queue {queue}" if changed else f"queue {queue} was already paused"
    print_result({"queue": queue, "paused": True, "changed": changed, "known": known}, text, as_json)
    if not known:
        print_note(f"{unknown_queue(queue, others)}; to undo, run: underway resume {shlex.quote(queue)}")


def unknown_queue(queue: str, others: set[str]) -> str:
    return f"unknown queue {queue!r}: no job, run or supervisor uses it yet; {admin_queries.existing(others)}"
