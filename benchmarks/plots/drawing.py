"""The look of the plots: one accent colour for underway, grey for the rest, names beside the lines, no legends."""

import textwrap
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.plots.labels import Anchor, LabelPlacer
from benchmarks.plots.plot_data import Bar, Bars, Curves, Distribution, Line, Panels, Plot

_ACCENT, _GREY, _TEXT, _FAINT = "#c8450c", "#8d959e", "#23282e", "#6b747d"
# Shades of the accent, for the parts of a stacked bar.
_SHADES = ("#c8450c", "#e58a5c", "#f3c7ae", "#f9e5da")
_RULE = "#e3e6e9"
_SIZE_INCHES, _DOTS_PER_INCH = (8.0, 4.8), 200
_TITLE_CHARACTERS, _BAR_NAME_CHARACTERS = 60, 24
_BOTTOM = 0.2

# Only matplotlib's own fonts, so that a plot looks the same on every machine.
matplotlib.use("agg")
matplotlib.rcParams.update(
    {
        "font.family": "DejaVu Sans",
        "font.size": 10.5,
        "text.color": _TEXT,
        "axes.edgecolor": _RULE,
        "axes.labelcolor": _FAINT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "xtick.color": _FAINT,
        "ytick.color": _FAINT,
        "xtick.labelcolor": _TEXT,
        "ytick.labelcolor": _FAINT,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "axes.axisbelow": True,
    }
)


def draw(plot: Plot, folder: Path) -> Path:
    figure = Figure(figsize=_SIZE_INCHES, dpi=_DOTS_PER_INCH, facecolor="white")
    title = textwrap.fill(plot.title, _TITLE_CHARACTERS)
    height = 0.058 * (title.count("\n") + 1)
    figure.text(0.03, 0.96, title, fontsize=15, fontweight="bold", va="top", linespacing=1.25)
    figure.text(0.03, 0.93 - height, plot.subtitle, fontsize=10.5, color=_FAINT, va="top")
    figure.text(0.03, 0.02, plot.footer, fontsize=7, color=_FAINT, va="bottom", linespacing=1.3)
    top = 0.85 - height
    match plot.content:
        case Bars(bars):
            _draw_bars(figure, bars, top)
        case Panels(panels):
            _draw_panels(figure, panels, top)
        case Distribution():
            _draw_distribution(figure, plot.content, top)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{plot.name}.png"
    figure.savefig(path)
    return path


def _draw_bars(figure: Figure, bars: list[Bar], top: float) -> None:
    axes = figure.add_axes((0.03, 0.1, 0.94, top - 0.1))
    axes.set_axis_off()
    longest = max(bars, key=lambda bar: bar.total)
    most = longest.total
    size = 10.5 if len(bars) <= 6 else 8.5
    # Names are on the left, figures at the end of each bar.
    axes.set_xlim(-0.42 * most, 1.14 * most)
    axes.set_ylim(max(len(bars), 3) - 0.4, -0.6)
    for place, bar in enumerate(bars):
        left = 0.0
        for number, (part, value) in enumerate(bar.parts.items()):
            colour = _SHADES[number % len(_SHADES)] if bar.ours else _GREY
            axes.barh(place, value, left=left, height=0.62, color=colour)
            if part and value > 0.05 * most:
                inside = "white" if number == 0 else _TEXT
                # Name the parts only in the longest bar: the others have the same colours.
                text = f"{part}\n{_figure(value)}" if bar is longest else _figure(value)
                axes.text(left + value / 2, place, text, ha="center", va="center", color=inside, fontsize=9.5)
            left += value
        style: dict[str, Any] = {"va": "center", "fontweight": "bold" if bar.ours else "normal", "fontsize": size}
        name = textwrap.fill(bar.label, _BAR_NAME_CHARACTERS)
        axes.text(-0.02 * most, place, name, ha="right", linespacing=1.1, **style)
        axes.text(left + 0.015 * most, place, _figure(bar.total), ha="left", **style)


def _draw_panels(figure: Figure, panels: list[Curves], top: float) -> None:
    width = 0.97 / len(panels)
    for number, curves in enumerate(panels):
        left = 0.02 + number * width
        height = top - _BOTTOM - (0.05 if curves.heading else 0)
        # Leave room on the left for the scale.
        axes = figure.add_axes((left + 0.065, _BOTTOM, width - 0.08, height))
        if curves.heading:
            axes.set_title(curves.heading, loc="left", fontsize=10.5, fontweight="bold", pad=8)
        _draw_curves(axes, curves)


def _draw_curves(axes: Axes, curves: Curves) -> None:
    axes.set_xticks(range(len(curves.ticks)), curves.ticks)
    axes.set_xlim(-0.2, len(curves.ticks) - 0.8)
    axes.set_xlabel(curves.x_label, fontsize=9.5)
    axes.grid(axis="y", color=_RULE, linewidth=0.8)
    values = [value for line in curves.lines for value in line.values]
    if curves.log:
        axes.set_yscale("log")
        axes.set_ylim(min(values) / 2, max(values) * 2)
        axes.yaxis.set_minor_locator(ticker.NullLocator())
    else:
        axes.set_ylim(0, max(1.0, max(values)) * 1.2 if curves.share else max(values) * 1.25)
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _figure(value, share=curves.share)))
    for line in curves.lines:
        axes.plot(
            line.values,
            color=_ACCENT if line.ours else _GREY,
            linewidth=2.6 if line.ours else 1.8,
            marker="o",
            markersize=5,
            zorder=3 if line.ours else 2,
        )
    _write_beside(axes, curves)


def _write_beside(axes: Axes, curves: Curves) -> None:
    """Write each line's figures at its points, and its name where it is farthest from the other lines."""
    labels = LabelPlacer(axes)
    for line in curves.lines:
        labels.avoid(line.values)
    anchors = {
        line.label: _anchors(axes, line, [other for other in curves.lines if other is not line])
        for line in curves.lines
    }
    lines = sorted(curves.lines, key=lambda line: not line.ours)
    for line in lines:
        for anchor in anchors[line.label]:
            text = _figure(anchor.y, share=curves.share)
            labels.write(text, [anchor], fontsize=8.5, color=_ACCENT if line.ours else _FAINT)
    for line in lines:
        apart = sorted(anchors[line.label], key=lambda anchor: -anchor.apart)
        weight = "bold" if line.ours else "normal"
        labels.write(line.label, apart, color=_ACCENT if line.ours else _FAINT, fontweight=weight)


def _anchors(axes: Axes, line: Line, others: list[Line]) -> list[Anchor]:
    """The points of a line. Labels of the upper line go above it, those of the lower one below."""
    anchors = []
    for x, y in enumerate(line.values):
        pixels = axes.transData.transform([(x, y), *((x, other.values[x]) for other in others)])[:, 1]
        apart = min((abs(float(pixel - pixels[0])) for pixel in pixels[1:]), default=0.0)
        anchors.append(Anchor(x, y, above=bool(pixels[0] >= max(pixels)), apart=apart))
    return anchors


def _draw_distribution(figure: Figure, distribution: Distribution, top: float) -> None:
    axes = figure.add_axes((0.05, _BOTTOM, 0.92, top - _BOTTOM))
    longest = max(distribution.values)
    counts, _, _ = axes.hist(distribution.values, bins=60, range=(0, longest), color=_ACCENT, rwidth=0.9)
    highest = max(float(count) for count in list(counts))
    axes.set_yticks([])
    axes.set_xlim(0, longest * 1.02)
    axes.set_ylim(0, highest * 1.35)
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g} {distribution.unit}"))
    for number, (name, value) in enumerate(distribution.marks.items()):
        # Each mark is higher than the previous one, so that no mark crosses a name.
        height = highest * (1.1 + 0.13 * number)
        axes.plot([value, value], [0, height], color=_TEXT, linewidth=1, linestyle=(0, (3, 2)))
        side = "left" if value < longest * 0.6 else "right"
        text = f" {name} {_figure(value)} {distribution.unit} "
        axes.text(value, height, text, ha=side, va="top", fontweight="bold")


def _figure(value: float, *, share: bool = False) -> str:
    if share:
        return f"{value:.0%}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
