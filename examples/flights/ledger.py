"""Records which run renders which report, beside the reports, so that a stopped demo can resume."""

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
    """A report and the run that renders it."""

    subject: Subject
    run: UUID


def place_orders(reports: Path, subjects: Iterable[Subject], *, again: bool) -> tuple[list[Order], int]:
    """A run for each subject, and the number of new runs.

    Live runs are kept. So are succeeded runs whose report exists, unless `again`.
    """
    reports.mkdir(parents=True, exist_ok=True)
    file = reports / "runs.json"
    known = {path: UUID(run) for path, run in json.loads(file.read_text()).items()} if file.exists() else {}
    subjects = list(subjects)
    with app.connection() as connection:
        states = states_of(connection, known.values())

        def is_current(subject: Subject) -> bool:
            state = states.get(known.get(subject.path))
            if state == "succeeded":
                return not again and (reports / subject.path).exists()
            return state in ("pending", "waiting", "in_progress")

        missing = [subject for subject in subjects if not is_current(subject)]
        runs = flight_report.enqueue_many(missing, conn=connection)
        known |= {subject.path: run.id for subject, run in zip(missing, runs, strict=True)}
        # Written before the commit. If we are killed in between, no run has these IDs, and the next demo orders the
        # reports again. In the opposite order, a kill would lead to duplicate runs.
        written = file.with_suffix(".new")
        written.write_text(json.dumps({path: str(run) for path, run in known.items()}, indent=1))
        written.replace(file)
    return [Order(subject, known[subject.path]) for subject in subjects], len(missing)


def states_of(connection: psycopg.Connection[Any], runs: Iterable[UUID]) -> dict[UUID | None, str]:
    """The states of those runs that exist."""
    rows = connection.execute("select id, state from underway.runs where id = any(%s)", [list(runs)])
    return dict(rows.fetchall())
