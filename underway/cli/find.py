"""From what somebody typed to one run or supervisor: an id, or as much of its beginning as no other has."""

from collections.abc import Callable
from uuid import UUID

import click

from underway.cli.database import Connection
from underway.ids import read_id
from underway.postgres import control, people
from underway.printable import printable


def find_run(connection: Connection, given: str) -> UUID:
    return _find(connection, "run", given, people.runs_like, "never committed, or gone after its keep")


def find_supervisor(connection: Connection, given: str) -> UUID:
    return _find(connection, "supervisor", given, people.supervisors_like, "see underway supervisors")


def refuse_id(given: str | None, kind: str, instead: str) -> None:
    """For what names many runs: none has the name of an id, which was meant as one."""
    if given is not None and read_id(given) is not None:
        raise click.UsageError(f"{given} is the id of a run, not {kind}: {instead} {given}")


def note_unknown_job(connection: Connection, job: str) -> None:
    """After a command that found no run of a job: its name may be misspelt."""
    known = people.registered_jobs(connection)
    if known and job not in known:
        click.echo(printable(f"note: no job {job!r} is registered; {control.existing(known)}"), err=True)


def _find(
    connection: Connection,
    kind: str,
    given: str,
    look: Callable[[Connection, UUID, UUID], list[people.Found]],
    absent: str,
) -> UUID:
    digits = given.replace("-", "").lower()
    if not digits or len(digits) > 32 or digits.strip("0123456789abcdef"):
        raise click.UsageError(f"{given!r} is no id of a {kind}: expected a UUID, or how one begins")
    found = look(connection, UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f")))
    if not found:
        begins = "the id" if len(digits) == 32 else "an id that begins with"
        raise click.ClickException(f"no {kind} has {begins} {given}: {absent}")
    if len(found) > 1:
        lines = [f"  {one.id}  {printable(one.about)}  {printable(one.more)}" for one in found[: people.ALIKE - 1]]
        lines += ["  and more"] if len(found) == people.ALIKE else []
        raise click.ClickException(f"several {kind}s have an id that begins with {given}:\n" + "\n".join(lines))
    return found[0].id
