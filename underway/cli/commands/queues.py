"""underway queues, pause, resume."""

import shlex
from datetime import datetime

import click

from underway.cli.options.database import connect, database_option
from underway.cli.output.documents import json_option, print_done, print_rows
from underway.cli.output.format import age
from underway.cli.output.table import Column
from underway.postgres import admin_queries, client_queries, inspection
from underway.printable import printable


@click.command("queues", short_help="Queues, and how many runs are in each.")
@database_option
@json_option
def queues(database: str | None, as_json: bool) -> None:
    """List all queues with their live runs.

    LATE is how long the longest waiting of the pending runs has been due.
    """
    with connect(database) as connection:
        found = inspection.list_queues(connection)
        now = client_queries.clock(connection)
    print_rows(found, _columns(now), as_json, none="no queues: no job is registered, and no run is live")


def _columns(now: datetime) -> list[Column[inspection.QueueRow]]:
    return [
        Column("QUEUE", lambda queue: queue["queue"], shrinks_to=10),
        Column("STATE", lambda queue: "paused" if queue["paused"] else ""),
        Column("PENDING", lambda queue: f"{queue['pending']:,}", right=True),
        Column("WAITING", lambda queue: f"{queue['waiting']:,}", right=True),
        Column("IN PROGRESS", lambda queue: f"{queue['in_progress']:,}", right=True),
        Column("LATE", lambda queue: age(queue["late_since"], now), right=True),
        Column("DEAD LETTERS", lambda queue: queue["dead_letter"], shrinks_to=12, extra=True),
    ]


@click.command("pause", short_help="Let no run of a queue begin.")
@click.argument("queue")
@database_option
@json_option
def pause(queue: str, database: str | None, as_json: bool) -> None:
    """Let no run of a queue begin, until it is resumed.

    Steps in progress go on to their end. A queue may be paused before anything
    uses it; a note says so of one that nobody knows yet.
    """
    with connect(database) as connection:
        known = inspection.knows_queue(connection, queue)
        others = set() if known else inspection.known_queues(connection) - {queue}
        changed = admin_queries.pause(connection, queue)
    text = f"{queue} is paused" if changed else f"{queue} was paused already"
    print_done({"queue": queue, "paused": True, "changed": changed, "known": known}, text, as_json)
    if not known:
        _note_unknown(queue, others, f"; undo it by: underway resume {shlex.quote(queue)}")


@click.command("resume", short_help="Undo pause.")
@click.argument("queue")
@database_option
@json_option
def resume(queue: str, database: str | None, as_json: bool) -> None:
    """Let the runs of a paused queue begin again."""
    with connect(database) as connection:
        changed = admin_queries.resume(connection, queue)
        known = changed or inspection.knows_queue(connection, queue)
        others = set() if known else inspection.known_queues(connection) - {queue}
    text = f"{queue} goes on" if changed else f"{queue} was not paused"
    print_done({"queue": queue, "paused": False, "changed": changed, "known": known}, text, as_json)
    if not known:
        _note_unknown(queue, others)


def _note_unknown(queue: str, others: set[str], hint: str = "") -> None:
    note = f"note: no job, run or supervisor has a queue {queue!r} yet; {admin_queries.existing(others)}{hint}"
    click.echo(printable(note), err=True)
