"""Distributes sections over pages. No section is split, and charts grow to fill the remaining space."""

from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

from reportlab.platypus import Flowable, Paragraph

from .plot import Chart, text
from .style import HEADING, MARGIN, PAGE_HEIGHT, PAGE_WIDTH, RULE, WIDTH

_TOP, _BOTTOM = float(PAGE_HEIGHT - 62), 56.0
_GAP = 18  # between sections
_FEWEST_PAGES = 2


@dataclass
class Section:
    """A heading (empty for the opening) and its content."""

    title: str
    parts: list[Flowable]

    @property
    def charts(self) -> list[Chart]:
        return [part for part in self.parts if isinstance(part, Chart)]

    def flowables(self) -> list[Flowable]:
        return [Paragraph(self.title, HEADING), *self.parts] if self.title else self.parts

    def height(self) -> float:
        return float(sum(part.wrap(WIDTH, PAGE_HEIGHT)[1] + _space_above(part, self) for part in self.flowables()))


def paginate(sections: list[Section]) -> list[list[Section]]:
    """Use as few pages as possible, with page breaks where the charts can fill the pages best."""
    heights = [section.height() for section in sections]
    growth = [sum(chart.high - chart.low for chart in section.charts) for section in sections]

    def room(start: int, end: int) -> float:
        return _TOP - _BOTTOM - sum(heights[start:end]) - _GAP * (end - start - 1)

    def waste(cuts: list[tuple[int, int]]) -> float:
        return sum(max(0.0, room(*cut) - sum(growth[slice(*cut)])) ** 2 for cut in cuts)

    for pages in range(min(_FEWEST_PAGES, len(sections)), len(sections) + 1):
        ways = [
            list(pairwise((0, *inner, len(sections)))) for inner in combinations(range(1, len(sections)), pages - 1)
        ]
        fitting = [cuts for cuts in ways if all(room(*cut) >= 0 for cut in cuts)]
        if fitting:
            best = min(fitting, key=waste)
            for cut in best:
                _grow([chart for section in sections[slice(*cut)] for chart in section.charts], room(*cut))
            return [sections[slice(*cut)] for cut in best]
    raise ValueError("a section is higher than a page")


def draw(canvas: Any, pages: list[list[Section]], header: tuple[str, str], source: str) -> None:
    for number, sections in enumerate(pages, start=1):
        _frame(canvas, header if number > 1 else None, source, f"Page {number} of {len(pages)}")
        y = _TOP if number > 1 else _TOP + 16  # no running header above the title
        for section in sections:
            if section.title:
                canvas.bookmarkHorizontal(section.title, 0, y + _GAP)
                canvas.addOutlineEntry(section.title, section.title)
            for part in section.flowables():
                _, height = part.wrapOn(canvas, WIDTH, PAGE_HEIGHT)
                y -= height + _space_above(part, section)
                part.drawOn(canvas, MARGIN, y)
            y -= _GAP
        canvas.showPage()


def _grow(charts: list[Chart], room: float) -> None:
    for left, chart in zip(
        range(len(charts), 0, -1), sorted(charts, key=lambda chart: chart.high - chart.low), strict=True
    ):
        more = min(room / left, chart.high - chart.low)
        chart.height = chart.low + more
        room -= more


def _space_above(part: Flowable, section: Section) -> float:
    if section.title and part is section.parts[0]:
        return 7
    return float(part.getSpaceBefore())


def _frame(canvas: Any, header: tuple[str, str] | None, source: str, page: str) -> None:
    right = PAGE_WIDTH - MARGIN
    canvas.setStrokeColor(RULE)
    canvas.setLineWidth(0.6)
    canvas.line(MARGIN, 44, right, 44)
    text(canvas, MARGIN, 32, source)
    text(canvas, right, 32, page, align="right")
    if header:
        canvas.line(MARGIN, PAGE_HEIGHT - 44, right, PAGE_HEIGHT - 44)
        text(canvas, MARGIN, PAGE_HEIGHT - 39, header[0])
        text(canvas, right, PAGE_HEIGHT - 39, header[1], align="right")
