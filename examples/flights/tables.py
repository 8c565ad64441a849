"""The tables of a report, and the row of headline figures."""

from collections.abc import Sequence
from math import sqrt
from typing import Any

from reportlab.platypus import Flowable, Table, TableStyle

from .figures import ON_TIME, Tally
from .plot import text
from .style import (
    ACCENT,
    BOLD,
    INK,
    MUTED,
    PALE,
    REGULAR,
    RULE,
    SHADE,
    SMALL,
    TABLE,
    WIDTH,
    percent,
)

# Heading, width in points (0: the remaining width), whether it holds numbers.
Column = tuple[str, float, bool]

_ROW = 15
_FEW_FLIGHTS = 5


def table(columns: Sequence[Column], rows: Sequence[Sequence[Any]], *, summary_rows: int = 0) -> Flowable:
    """Numbers are right-aligned, text is left-aligned; the last `summary_rows` are shaded."""
    left_over = WIDTH - sum(width for _, width, _ in columns)
    drawn = Table(
        [[heading for heading, _, _ in columns], *rows],
        colWidths=[width or left_over for _, width, _ in columns],
        rowHeights=[13 + 9 * max(heading.count("\n") for heading, _, _ in columns), *[_ROW] * len(rows)],
    )
    style = [
        ("FONT", (0, 0), (-1, 0), BOLD, SMALL, 9),
        ("TEXTCOLOR", (0, 0), (-1, 0), MUTED),
        ("VALIGN", (0, 0), (-1, 0), "BOTTOM"),
        ("FONT", (0, 1), (-1, -1), REGULAR, TABLE),
        ("TEXTCOLOR", (0, 1), (-1, -1), INK),
        ("VALIGN", (0, 1), (-1, -1), "MIDDLE"),
        ("LINEBELOW", (0, 0), (-1, 0), 0.8, MUTED),
        ("LINEBELOW", (0, 1), (-1, -1), 0.4, RULE),
        ("TOPPADDING", (0, 0), (-1, -1), 1),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 3),
        ("LEFTPADDING", (0, 0), (-1, -1), 4),
        ("RIGHTPADDING", (0, 0), (-1, -1), 4),
        *(("ALIGN", (at, 0), (at, -1), "RIGHT") for at, (_, _, numbers) in enumerate(columns) if numbers),
        # Keep text columns apart from a number column on their left.
        *(
            ("LEFTPADDING", (at, 0), (at, -1), 12)
            for at in range(1, len(columns))
            if columns[at - 1][2] > columns[at][2]
        ),
    ]
    if summary_rows:
        style.append(("BACKGROUND", (0, -summary_rows), (-1, -1), SHADE))
    drawn.setStyle(TableStyle(style))
    return drawn


def on_time(tally: Tally) -> "Flowable | str":
    """The table cell for the share on time; for only a few flights, the count."""
    if tally.flights < _FEW_FLIGHTS:
        return f"{tally.on_time} of {tally.flights}"
    return ShareBar(tally)


class ShareBar(Flowable):  # type: ignore[misc]
    """The share of flights on time as a number, a bar, and a line for its 95% confidence interval."""

    _number, _bar = 27, 58

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._share = tally.share(ON_TIME)
        self._likely = _likely_share(tally.on_time, tally.flights)

    def wrap(self, *_available: float) -> tuple[float, float]:
        return self._number + 5 + self._bar, 9

    def draw(self) -> None:
        start, length = self._number + 5, self._bar
        text(self.canv, self._number, 1.2, percent(self._share), align="right", colour=INK, size=TABLE)
        for colour, share in ((RULE, 1.0), (PALE, self._share)):
            self.canv.setFillColor(colour)
            self.canv.rect(start, 1, length * share, 6, 0, 1)
        self.canv.setStrokeColor(INK)
        self.canv.setLineWidth(0.9)
        low, high = self._likely
        self.canv.line(start + length * low, 4, start + length * high, 4)


class Headlines(Flowable):  # type: ignore[misc]
    """Boxes side by side: a label, its value, and two lines of comparison."""

    _height, _gap = 66, 8

    def __init__(self, boxes: Sequence[tuple[str, str, str, str]]) -> None:
        super().__init__()
        self._boxes = boxes
        self.spaceBefore = 12

    def wrap(self, *_available: float) -> tuple[float, float]:
        return WIDTH, self._height

    def draw(self) -> None:
        width = (WIDTH - self._gap * (len(self._boxes) - 1)) / len(self._boxes)
        for number, (label, value, *comparisons) in enumerate(self._boxes):
            left = number * (width + self._gap)
            self.canv.setFillColor(SHADE)
            self.canv.rect(left, 0, width, self._height, 0, 1)
            self.canv.setFillColor(ACCENT)
            self.canv.rect(left, self._height - 2, width, 2, 0, 1)
            text(self.canv, left + 7, self._height - 14, label)
            text(self.canv, left + 7, self._height - 35, value, colour=INK, font=BOLD, size=17)
            for line, comparison in enumerate(comparisons):
                text(self.canv, left + 7, 17 - 10 * line, comparison)


def _likely_share(hits: int, of: int) -> tuple[float, float]:
    """Wilson's 95% interval. Unlike the normal approximation, it stays within 0 and 1 and is valid for few flights."""
    z = 1.96
    centre, scale = (hits + z * z / 2) / (of + z * z), z / (of + z * z)
    spread = scale * sqrt(hits * (of - hits) / of + z * z / 4)
    return max(0.0, centre - spread), min(1.0, centre + spread)
