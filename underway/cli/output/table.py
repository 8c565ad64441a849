"""One table for every list: aligned text that fits its terminal, in colour where somebody sees it.

A terminal's width is kept by leaving out columns that are said to be extra, then by shortening what may shrink of the
others. What is piped has no width to keep: each row is whole, on a line of its own.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import click

from underway.cli.output.format import fitting, width_of
from underway.printable import printable

Row = TypeVar("Row", bound=Mapping[str, Any])

_GAP = "  "
_SHORTENED = "…"

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
class Column(Generic[Row]):
    """`cell` makes the text of a row. `shrinks_to`: shortened to so many characters if there is no room.

    An `extra` column is shown where there is room beside all others in full; of several the last one goes first.
    """

    title: str
    cell: Callable[[Row], object]
    right: bool = False
    shrinks_to: int | None = None
    extra: bool = False


def render(columns: Sequence[Column[Row]], rows: Sequence[Row], width: int | None) -> list[str]:
    """The lines of a table, its heading first. A column that says nothing of any row is left out."""
    texts = {column: [_one_line(column.cell(row)) for row in rows] for column in columns}
    shown = [column for column in columns if any(texts[column])]
    widths = {column: max(width_of(text) for text in [column.title, *texts[column]]) for column in shown}
    if width is not None:
        _fit(shown, widths, width)
    heading = _line([_cell(column.title, column, widths) for column in shown])
    body = [_line([_coloured(_cell(texts[column][n], column, widths)) for column in shown]) for n in range(len(rows))]
    return [click.style(heading, bold=True), *body]


def terminal_width() -> int | None:
    """COLUMNS, else the terminal's; None where output is piped and nothing needs to be shortened."""
    if (given := os.environ.get("COLUMNS", "")).isdigit() and int(given) > 0:
        return int(given)
    return os.get_terminal_size(sys.stdout.fileno()).columns or None if sys.stdout.isatty() else None


def _fit(shown: list[Column[Row]], widths: dict[Column[Row], int], width: int) -> None:
    natural = dict(widths)
    least = {column: _least(column, widths) for column in shown}
    widths.update({column: least[column] for column in shown if column.extra})
    while _excess(shown, widths, width) > 0 and (extra := [column for column in shown if column.extra]):
        shown.remove(extra[-1])
    while _excess(shown, least, width) > 0 and len(shown) > 1:
        shown.pop()  # a terminal narrower than any table of ours: what says least stands on the right
    while _excess(shown, widths, width) > 0 and (
        long := [column for column in shown if widths[column] > least[column]]
    ):
        widths[max(long, key=lambda column: widths[column])] -= 1
    for column in [column for column in shown if column.extra]:
        widths[column] = min(natural[column], widths[column] - _excess(shown, widths, width))


def _excess(shown: list[Column[Row]], widths: dict[Column[Row], int], width: int) -> int:
    return sum(widths[column] for column in shown) + len(_GAP) * (len(shown) - 1) - width


def _least(column: Column[Row], widths: dict[Column[Row], int]) -> int:
    if column.shrinks_to is None:
        return widths[column]
    return min(widths[column], max(column.shrinks_to, len(column.title)))


def _cell(text: str, column: Column[Row], widths: dict[Column[Row], int]) -> str:
    text = _shortened(text, widths[column])
    space = " " * (widths[column] - width_of(text))
    return space + text if column.right else text + space


def _line(cells: list[str]) -> str:
    """No blanks at its end."""
    return _GAP.join(cells).rstrip()


def _coloured(cell: str) -> str:
    text = cell.strip()
    return cell if text not in _COLOURS else cell.replace(text, click.style(text, fg=_COLOURS[text]))


def _one_line(value: object) -> str:
    return " ".join(printable("" if value is None else str(value)).split())


def _shortened(text: str, width: int) -> str:
    return text if width_of(text) <= width else fitting(text, width - 1) + _SHORTENED
