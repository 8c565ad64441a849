"""Renders every list as one kind of table: aligned text that fits the terminal, in colour on a terminal.

A table that is too wide first loses its optional columns and then has its shrinkable cells shortened. Piped output has
no width limit: each record is complete, on one line.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import click

from underway.cli.output.format import truncate, width_of
from underway.printable import printable

Record = TypeVar("Record", bound=Mapping[str, Any])

_GAP = "  "
_ELLIPSIS = "…"

_COLOURS = {
    "in_progress": "cyan",
    "waiting": "yellow",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "magenta",
    "timed_out": "red",
    "crashed": "red",
    "out_of_memory": "red",
    "lost": "red",
    "paused": "yellow",
    "unhealthy": "red",
}


@dataclass(frozen=True)
class Column(Generic[Record]):
    """`cell` gives the text for a record; `shrinks_to` is the width down to which that text may be shortened.

    An `optional` column is shown only if all others fit in full. The last optional column is dropped first.
    """

    title: str
    cell: Callable[[Record], object]
    right: bool = False
    shrinks_to: int | None = None
    optional: bool = False


def render(columns: Sequence[Column[Record]], records: Sequence[Record], width: int | None) -> list[str]:
    """The lines of a table, its heading first. A column that is empty for all records is left out."""
    texts = {column: [_one_line(column.cell(record)) for record in records] for column in columns}
    shown = [column for column in columns if any(texts[column])]
    widths = {column: max(width_of(text) for text in [column.title, *texts[column]]) for column in shown}
    if width is not None:
        _fit(shown, widths, width)
    heading = _line([_cell(column.title, column, widths) for column in shown])
    body = [
        _line([_coloured(_cell(texts[column][n], column, widths)) for column in shown]) for n in range(len(records))
    ]
    return [click.style(heading, bold=True), *body]


def terminal_width() -> int | None:
    """COLUMNS, else the width of the terminal; None if the output is piped."""
    if (given := os.environ.get("COLUMNS", "")).isdigit() and int(given) > 0:
        return int(given)
    return os.get_terminal_size(sys.stdout.fileno()).columns or None if sys.stdout.isatty() else None


def _fit(shown: list[Column[Record]], widths: dict[Column[Record], int], width: int) -> None:
    natural = dict(widths)
    minimum = {column: _minimum(column, widths) for column in shown}
    widths.update({column: minimum[column] for column in shown if column.optional})
    while _excess(shown, widths, width) > 0 and (optional := [column for column in shown if column.optional]):
        shown.remove(optional[-1])
    while _excess(shown, minimum, width) > 0 and len(shown) > 1:
        shown.pop()  # very narrow: the rightmost columns matter least
    while _excess(shown, widths, width) > 0 and (
        shrinkable := [column for column in shown if widths[column] > minimum[column]]
    ):
        widths[max(shrinkable, key=lambda column: widths[column])] -= 1
    for column in [column for column in shown if column.optional]:
        widths[column] = min(natural[column], widths[column] - _excess(shown, widths, width))


def _excess(shown: list[Column[Record]], widths: dict[Column[Record], int], width: int) -> int:
    return sum(widths[column] for column in shown) + len(_GAP) * (len(shown) - 1) - width


def _minimum(column: Column[Record], widths: dict[Column[Record], int]) -> int:
    if column.shrinks_to is None:
        return widths[column]
    return min(widths[column], max(column.shrinks_to, len(column.title)))


def _cell(text: str, column: Column[Record], widths: dict[Column[Record], int]) -> str:
    text = _shortened(text, widths[column])
    space = " " * (widths[column] - width_of(text))
    return space + text if column.right else text + space


def _line(cells: list[str]) -> str:
    """The cells of one line, without trailing blanks."""
    return _GAP.join(cells).rstrip()


def _coloured(cell: str) -> str:
    text = cell.strip()
    return cell if text not in _COLOURS else cell.replace(text, click.style(text, fg=_COLOURS[text]))


def _one_line(value: object) -> str:
    return " ".join(printable("" if value is None else str(value)).split())


def _shortened(text: str, width: int) -> str:
    return text if width_of(text) <= width else truncate(text, width - 1) + _ELLIPSIS
