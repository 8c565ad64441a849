"""What was measured before: the files that `report.save` wrote, read back."""

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
class Document:
    """One run of the benchmarks. `kind` is the file's own word for it; without one it is underway's."""

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
        """The most of the machine that others used while something here was measured, if it was too much."""
        return max((row.disturbed for row in self.rows if row.disturbed is not None), default=None)


def load(path: Path) -> Document:
    """Raises ValueError for a file of another form."""
    try:
        read = json.loads(path.read_text())
        return Document(
            path,
            read.get("kind", OWN),
            datetime.fromisoformat(read["at"]),
            Machine(**read["circumstances"]["machine"]),
            read["options"]["rounds"],
            [_row(row) for row in read["rows"]],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no result of these benchmarks: {error!r}") from error


def load_all(paths: Iterable[Path]) -> list[Document]:
    """The newest first."""
    return sorted(map(load, paths), key=lambda document: document.at, reverse=True)


def load_folder(folder: Path) -> list[Document]:
    """The newest first; results in the form of an earlier version are passed over."""
    documents = []
    for path in folder.glob("*.json"):
        try:
            documents.append(load(path))
        except ValueError:
            continue
    return sorted(documents, key=lambda document: document.at, reverse=True)


def holding(documents: Sequence[Document], name: str) -> Document | None:
    """The newest of ours that has this row."""
    return next((one for one in documents if one.kind == OWN and one.row(name) is not None), None)


def holding_series(documents: Sequence[Document], name: str) -> Document | None:
    return next((one for one in documents if one.kind == OWN and one.series(name)), None)


def _row(read: dict[str, Any]) -> Row:
    point = read.get("point")
    return Row(**{name: read[name] for name in _FIELDS & read.keys()} | {"point": Point(**point) if point else None})
