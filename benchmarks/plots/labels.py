"""Places names and figures beside the lines, where they cover nothing."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

# Distance from the data point to the text, in points, and the extra distances to try if it is not free.
_NEAR, _FURTHER = 6, (0, 13, 26)
# The cost of covering another text and of leaving the panel, in covered pixels of a line.
_TEXT_COST, _OUTSIDE_COST = 20, 10
_WORST = 1_000_000


@dataclass(frozen=True)
class Anchor:
    """A point of a line, the preferred side for its text, and the distance to the nearest other line in pixels."""

    x: float
    y: float
    above: bool
    apart: float

    def positions(self) -> Iterator[dict[str, Any]]:
        """Where the text may go, in order of preference: the preferred side first, close to the point."""
        first = 1 if self.above else -1
        for further in _FURTHER:
            for sign in (first, -first):
                edge = "bottom" if sign > 0 else "top"
                for shift, side in ((0, "center"), (-4, "left"), (4, "right"), (7, "left"), (-7, "right")):
                    yield {"xytext": (shift, sign * (_NEAR + further)), "ha": side, "va": edge}


@dataclass
class LabelPlacer:
    """Places the labels of one panel, after its lines are drawn and its axis limits are set."""

    axes: Axes
    _lines: list[Any] = field(default_factory=list)
    _taken: list[Bbox] = field(default_factory=list)

    def avoid(self, values: list[float]) -> None:
        """Keep labels off the line through these values at x = 0, 1, 2..."""
        xs, ys = self.axes.transData.transform(list(enumerate(values))).T
        every = numpy.arange(xs[0], xs[-1])
        self._lines.append(numpy.column_stack([every, numpy.interp(every, xs, ys)]))

    def write(self, text: str, anchors: Iterable[Anchor], **style: Any) -> None:
        """Write the text at the first anchor where it covers nothing, or else where it covers least."""
        best, lowest = None, _WORST
        for anchor in anchors:
            for place in anchor.positions():
                label = self.axes.annotate(text, (anchor.x, anchor.y), textcoords="offset points", **place, **style)
                cost = self._cost(label.get_window_extent())
                if cost < lowest:
                    if best is not None:
                        best.remove()
                    best, lowest = label, cost
                else:
                    label.remove()
                if lowest == 0:
                    break
            if lowest == 0:
                break
        if best is not None:
            self._taken.append(best.get_window_extent())

    def _cost(self, box: Bbox) -> int:
        """The pixels of lines that this box would cover, plus penalties; 0 if it covers nothing."""
        panel = self.axes.get_window_extent().padded(12)
        outside = box.x0 < panel.x0 or box.x1 > panel.x1 or box.y0 < panel.y0 or box.y1 > panel.y1
        covered = sum(_inside(box.padded(3), line) for line in self._lines)
        texts = sum(bool(box.overlaps(other)) for other in self._taken)
        return covered + _TEXT_COST * texts + _OUTSIDE_COST * int(outside)


def _inside(box: Bbox, pixels: Any) -> int:
    x, y = pixels[:, 0], pixels[:, 1]
    return int(numpy.count_nonzero((x > box.x0) & (x < box.x1) & (y > box.y0) & (y < box.y1)))
