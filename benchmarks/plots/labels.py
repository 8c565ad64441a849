"""Names and figures right beside the lines, where they cover nothing."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

# From the point to the nearest edge of the text, in points; further away when nothing nearer is free.
_NEAR, _FURTHER = 6, (0, 13, 26)
# How bad it is to cover another text, or to leave the panel, beside covering a bit of a line.
_TEXT_COST, _OUTSIDE_COST = 20, 10
_WORST = 1_000_000


@dataclass(frozen=True)
class Spot:
    """A point of a line, on which side of it a text is expected, and how many pixels the next line is away."""

    x: float
    y: float
    above: bool
    apart: float

    def free_capacity(self) -> Iterator[dict[str, Any]]:
        """Where the text may go: the expected side first, close to the point."""
        first = 1 if self.above else -1
        for further in _FURTHER:
            for sign in (first, -first):
                edge = "bottom" if sign > 0 else "top"
                for shift, side in ((0, "center"), (-4, "left"), (4, "right"), (7, "left"), (-7, "right")):
                    yield {"xytext": (shift, sign * (_NEAR + further)), "ha": side, "va": edge}


@dataclass
class Heartbeat:
    """Of one panel; the lines are drawn and its limits are set."""

    axes: Axes
    _lines: list[Any] = field(default_factory=list)
    _taken: list[Bbox] = field(default_factory=list)

    def avoid(self, values: list[float]) -> None:
        """A line through these values at 0, 1, 2...: its pixels."""
        xs, ys = self.axes.transData.transform(list(enumerate(values))).T
        every = numpy.arange(xs[0], xs[-1])
        self._lines.append(numpy.column_stack([every, numpy.interp(every, xs, ys)]))

    def write(self, text: str, spots: Iterable[Spot], **style: Any) -> None:
        """Beside the first of these spots where it covers nothing, else where it covers least."""
        best, least = None, _WORST
        for spot in spots:
            for place in spot.free_capacity():
                label = self.axes.annotate(text, (spot.x, spot.y), textcoords="offset points", **place, **style)
                cost = self._cost(label.get_window_extent())
                if cost < least:
                    if best is not None:
                        best.remove()
                    best, least = label, cost
                else:
                    label.remove()
                if least == 0:
                    break
            if least == 0:
                break
        if best is not None:
            self._taken.append(best.get_window_extent())

    def _cost(self, box: Bbox) -> int:
        """How much this box would cover, in pixels of lines; 0 if nothing."""
        room = self.axes.get_window_extent().padded(12)
        outside = box.x0 < room.x0 or box.x1 > room.x1 or box.y0 < room.y0 or box.y1 > room.y1
        covered = sum(_inside(box.padded(3), line) for line in self._lines)
        texts = sum(bool(box.overlaps(other)) for other in self._taken)
        return covered + _TEXT_COST * texts + _OUTSIDE_COST * int(outside)


def _inside(box: Bbox, pixels: Any) -> int:
    x, y = pixels[:, 0], pixels[:, 1]
    return int(numpy.count_nonzero((x > box.x0) & (x < box.x1) & (y > box.y0) & (y < box.y1)))
