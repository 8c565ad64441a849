"""A roster of stub workers."""

from collections.abc import Iterable, Mapping
from typing import Any

from underway.definition.manifest import Lane, Step
from underway.supervisor.workers.roster import Roster


def roster_of(workers: Iterable[Any], lanes: Mapping[Lane, Step] | None = None) -> Roster:
    roster = Roster(size=0)
    roster.active.extend(workers)
    roster.lanes = dict(lanes or {})
    return roster
