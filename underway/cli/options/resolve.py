"""Finds the run or supervisor that a user means by an ID or a unique prefix of one."""

from collections.abc import Callable
from uuid import UUID

import click

from underway.cli.options.database import Connection
from underway.cli.output.printing import print_note
from underway.ids import read_id
from underway.postgres import admin_queries, inspection
from underway.printable import printable


def resolve_run(connection: Connection, prefix: str) -> UUID:
    hint = "it was never committed, or its retention (keep) has expired"
    return _resolve(connection, "run", prefix, inspection.runs_like, hint)


def resolve_supervisor(connection: Connection, prefix: str) -> UUID:
    hint = "list the supervisors with: underway supervisors"
    return _resolve(connection, "supervisor", prefix, inspection.supervisors_like, hint)


def reject_run_id(value: str | None, expected: str, command: str) -> None:
    """Raise UsageError if a run ID stands where the name of something else is expected."""
    if value is not None and read_id(value) is not None:
        raise click.UsageError(f"{value} is a run ID, not {expected}; use: {command} {value}")


def deleted_meanwhile(run_id: UUID) -> click.ClickException:
    return click.ClickException(f"run {run_id} no longer exists: its retention (keep) has just expired")


def _resolve(
    connection: Connection,
    kind: str,
    prefix: str,
    search: Callable[[Connection, UUID, UUID], list[inspection.Found]],
    hint: str,
) -> UUID:
    digits = prefix.replace("-", "").lower()
    if not digits or len(digits) > 32 or digits.strip("0123456789abcdef"):
        raise click.UsageError(f"invalid {kind} ID {prefix!r}: expected a UUID or a unique prefix")
    matches = search(connection, UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f")))
    if not matches:
        missing = f"no {kind} with ID" if len(digits) == 32 else f"no {kind} ID starts with"
        raise click.ClickException(f"{missing} {prefix}: {hint}")
    if len(matches) > 1:
        raise click.ClickException(f"ambiguous {kind} ID prefix {prefix}, candidates:\n{_candidates(matches)}")
    return matches[0].id


def _candidates(matches: list[inspection.Found]) -> str:
    lines = [
        f"  {match.id}  {printable(match.about)}  {printable(match.more)}"
        for match in matches[: inspection.MAX_MATCHES - 1]
    ]
    lines += ["  and more"] if len(matches) == inspection.MAX_MATCHES else []
    return "\n".join(lines)


def note_unknown_job(connection: Connection, job: str) -> None:
    """After a command that found no run of a job: its name may be misspelt."""
    known = inspection.registered_jobs(connection)
    if known and job not in known:
        print_note(f"unknown job {job!r}; {admin_queries.existing(known)}")
