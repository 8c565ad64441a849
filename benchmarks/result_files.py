"""Reads the result files that `report.save` has written."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import Machine
from benchmarks.model import Point, Row

OWN, PEERS = "underway", "peers"
_FIELDS = {field.name for field in fields(Row)}


@dataclass(frozen=True)
class ResultFile:
    """The results of one run of the benchmarks. A file without a `kind` is one of underway's own."""

    path: Path
    kind: str
    at: datetime
    machine: Machine
    rounds: int
    rows: list[Row]

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.name == name), None)

    def series(self, name: str) -> list[Row]:
        """The points of a curve, in order of x."""
        points = [(row.point.x, row) for row in self.rows if row.point is not None and row.point.series == name]
        return [row for _, row in sorted(points, key=lambda pair: pair[0])]

    @property
    def disturbed(self) -> float | None:
        """The largest share of the machine that other processes used during a sample, if it was too large."""
        return max((row.disturbed for row in self.rows if row.disturbed is not None), default=None)


def load(path: Path) -> ResultFile:
    """Raises ValueError if the file is not a result of these benchmarks."""
    try:
        data = json.loads(path.read_text())
        return ResultFile(
            path,
            data.get("kind", OWN),
            datetime.fromisoformat(data["at"]),
            Machine(**data["circumstances"]["machine"]),
            data["options"]["rounds"],
            [_row(row) for row in data["rows"]],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a result file of these benchmarks: {error!r}") from error


def load_all(paths: Iterable[Path]) -> list[ResultFile]:
    """Newest first."""
    return sorted(map(load, paths), key=lambda result: result.at, reverse=True)


def load_folder(folder: Path) -> list[ResultFile]:
    """Newest first. Files that cannot be read, such as those of an earlier version, are skipped."""
    results = []
    for path in folder.glob("*.json"):
        try:
            results.append(load(path))
        except ValueError:
            continue
    return sorted(results, key=lambda result: result.at, reverse=True)


def newest_with_row(results: Sequence[ResultFile], name: str) -> ResultFile | None:
    """The newest of underway's own results that has this row."""
    return next((result for result in results if result.kind == OWN and result.row(name) is not None), None)


def newest_with_series(results: Sequence[ResultFile], name: str) -> ResultFile | None:
    return next((result for result in results if result.kind == OWN and result.series(name)), None)


def _row(data: dict[str, Any]) -> Row:
    point = data.get("point")
    return Row(**{name: data[name] for name in _FIELDS & data.keys()} | {"point": Point(**point) if point else None})
