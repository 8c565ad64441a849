"""Which run makes which report: remembered beside the reports, so that a demo that was stopped goes on where it was."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from .app import app, flight_report
from .figures import Subject


@dataclass(frozen=True)
class Order:
    """A report and the run that makes it."""

    subject: Subject
    run: UUID


def place_orders(reports: Path, subjects: Iterable[Subject], *, again: bool) -> tuple[list[Order], int]:
    """A run for each subject, and how many of them are new.

    A run that is still live is kept, and so is one that succeeded and whose report is there, unless `again`.
    """
    reports.mkdir(parents=True, exist_ok=True)
    file = reports / "runs.json"
    known = {place: UUID(run) for place, run in json.loads(file.read_text()).items()} if file.exists() else {}
    subjects = list(subjects)
    with app.connection() as connection:
        states = states_of(connection, known.values())

        def stands(subject: Subject) -> bool:
            state = states.get(known.get(subject.place))
            if state == "succeeded":
                return not again and (reports / subject.place).exists()
            return state in ("pending", "waiting", "in_progress")

        missing = [subject for subject in subjects if not stands(subject)]
        runs = flight_report.enqueue_many(missing, conn=connection)
        known |= {subject.place: run.id for subject, run in zip(missing, runs, strict=True)}
        # Written before the commit. If we are killed in between, the ids lead nowhere, and the next demo takes such
        # reports for missing; the other way round it would order them twice.
        written = file.with_suffix(".new")
        written.write_text(json.dumps({place: str(run) for place, run in known.items()}, indent=1))
        written.replace(file)
    return [Order(subject, known[subject.place]) for subject in subjects], len(missing)


def states_of(connection: psycopg.Connection[Any], runs: Iterable[UUID]) -> dict[UUID | None, str]:
    """The state of each of these runs that exists."""
    rows = connection.execute("select id, state from underway.runs where id = any(%s)", [list(runs)])
    return dict(rows.fetchall())
