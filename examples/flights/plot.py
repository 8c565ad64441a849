"""The frame of a chart: a plotting area with axes, on a reportlab canvas."""

from collections.abc import Callable, Iterable, Sequence
from math import ceil, floor, log10
from typing import Any

from reportlab.lib.colors import white
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.platypus import Flowable

from .style import INK, MUTED, REGULAR, RULE, SHADE, SMALL, WIDTH

_LEFT, _TOP = 34, 20


class Chart(Flowable):  # type: ignore[misc]
    """A drawing as wide as the text. The page sets its height, between `low` and `high`."""

    def __init__(self, draw: Callable[[Any, float], None], low: float, high: float) -> None:
        super().__init__()
        self._draw, self.low, self.high = draw, low, high
        self.height = low

    def wrap(self, *_available: float) -> tuple[float, float]:
        return WIDTH, self.height

    def draw(self) -> None:
        self._draw(self.canv, self.height)


class Plot:
    """A plotting area on the canvas: converts data to positions, and draws axes and marks."""

    def __init__(
        self, canvas: Any, height: float, x: tuple[float, float], y: tuple[float, float], *, below: float = 26
    ) -> None:
        self.canvas = canvas
        self.left, self.right = float(_LEFT), float(WIDTH)
        self.bottom, self.top = below, height - _TOP
        self._x, self._y = x, y

    def x(self, value: float) -> float:
        low, high = self._x
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self._y
        return self.bottom + (value - low) / (high - low) * (self.top - self.bottom)

    def y_axis(self, ticks: Iterable[float], label: Callable[[float], str], title: str) -> None:
        """Grid lines with labels on the left. The title is above the axis, so that it is horizontal."""
        for tick in ticks:
            height = self.y(tick)
            self.canvas.setStrokeColor(RULE)
            self.canvas.setLineWidth(0.5)
            self.canvas.line(self.left, height, self.right, height)
            text(self.canvas, self.left - 5, height - SMALL * 0.35, label(tick), align="right")
        text(self.canvas, 0, self.top + 9, title)

    def x_labels(self, labels: Iterable[tuple[float, str]], row: int = 0, *, ink: bool = False) -> None:
        for value, label in labels:
            height = self.bottom - 10 - 9 * row
            text(self.canvas, self.x(value), height, label, align="centre", colour=INK if ink else MUTED)

    def x_title(self, title: str) -> None:
        text(self.canvas, (self.left + self.right) / 2, 1, title, align="centre")

    def base_line(self, value: float = 0) -> None:
        self.canvas.setStrokeColor(MUTED)
        self.canvas.setLineWidth(0.8)
        self.canvas.line(self.left, self.y(value), self.right, self.y(value))

    def shade(self, start: float, end: float) -> None:
        self.canvas.setFillColor(SHADE)
        bottom = self.bottom - 14  # extends behind the labels, because full bars hide the rest
        self.canvas.rect(self.x(start), bottom, self.x(end) - self.x(start), self.top - bottom, 0, 1)

    def box(self, start: float, end: float, low: float, high: float, colour: Any) -> None:
        self.canvas.setFillColor(colour)
        self.canvas.rect(self.x(start), self.y(low), self.x(end) - self.x(start), self.y(high) - self.y(low), 0, 1)

    def mark(self, start: float, end: float, value: float) -> None:
        """A short horizontal line, visible on light and dark backgrounds."""
        for colour, width in ((white, 2.6), (INK, 1.2)):
            self.canvas.setStrokeColor(colour)
            self.canvas.setLineWidth(width)
            self.canvas.line(self.x(start), self.y(value), self.x(end), self.y(value))

    def legend(self, entries: Sequence[tuple[str, Any]]) -> None:
        """Right-aligned above the plotting area; an entry without a colour is a mark."""
        legend(self.canvas, self.right, self.top + 9, entries)


def legend(canvas: Any, right: float, baseline: float, entries: Sequence[tuple[str, Any]]) -> None:
    x = right
    for label, colour in reversed(entries):
        x -= stringWidth(label, REGULAR, SMALL)
        text(canvas, x, baseline, label)
        x -= 11
        if colour is None:
            canvas.setStrokeColor(INK)
            canvas.setLineWidth(1.2)
            canvas.line(x, baseline + 2.6, x + 8, baseline + 2.6)
        else:
            canvas.setFillColor(colour)
            canvas.rect(x, baseline - 0.6, 7, 6.5, 0, 1)
        x -= 10


def text(
    canvas: Any,
    x: float,
    y: float,
    content: str,
    *,
    align: str = "left",
    colour: Any = MUTED,
    font: str = REGULAR,
    size: float = SMALL,
) -> None:
    canvas.setFont(font, size)
    canvas.setFillColor(colour)
    write = {"left": canvas.drawString, "right": canvas.drawRightString, "centre": canvas.drawCentredString}[align]
    write(x, y, content)


def ticks(low: float, high: float, about: int = 5, *, integers: bool = False) -> list[float]:
    """Round values from at most `low` to at least `high`."""
    rough = max(high - low, 1e-9) / about
    magnitude = 10 ** floor(log10(rough))
    step = next(nice * magnitude for nice in (1, 2, 5, 10) if nice * magnitude >= rough)
    if integers:
        step = max(1, round(step))
    return [step * count for count in range(floor(low / step), ceil(high / step) + 1)]
