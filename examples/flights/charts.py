"""The charts of a report. Each draws figures on a canvas, as wide as the text and `height` points high."""

from calendar import SATURDAY, month_abbr, weekday
from typing import Any

from reportlab.lib.colors import white
from reportlab.pdfbase.pdfmetrics import stringWidth

from .figures import LATE_FROM, OUTCOMES, YEAR, Bin, Day, Hour, Month, Tally
from .plot import Plot, legend, text, ticks
from .style import (
    ACCENT,
    BOLD,
    DASH,
    INK,
    MUTED,
    OUTCOME_COLOURS,
    PALE,
    REGULAR,
    SMALL,
    WIDTH,
    minutes,
    percent,
    whole,
)

EVERYONE = "All New York"
ENOUGH_FOR_SHARES = 8  # flights per day, on average, from which shares say more than counts
_LIGHT = (1, 2, 4)  # outcomes with a light colour, which needs dark text
_KEY = list(zip(OUTCOMES, OUTCOME_COLOURS, strict=True))


def outcomes(canvas: Any, height: float, bars: list[tuple[str, Tally]]) -> None:
    """One full-width bar per tally: how its flights ended, as shares."""
    legend(canvas, WIDTH, height - 8, _KEY)
    left = 8 + max(stringWidth(label, BOLD, SMALL) for label, _ in bars)
    row = (height - 16) / len(bars)
    thick = row * 0.72
    for number, (label, tally) in enumerate(bars):
        bottom = height - 16 - row * (number + 1) + (row - thick) / 2
        middle = bottom + thick / 2 - SMALL * 0.35
        text(canvas, left - 8, middle, label, align="right", colour=INK, font=REGULAR if number else BOLD)
        x = float(left)
        for outcome, colour in enumerate(OUTCOME_COLOURS):
            share = tally.share(outcome)
            width = share * (WIDTH - left)
            canvas.setFillColor(colour)
            canvas.rect(x, bottom, width, thick, 0, 1)
            label = percent(share)
            if width > stringWidth(label, BOLD, SMALL) + 4:
                on = INK if outcome in _LIGHT else white
                text(canvas, x + width / 2, middle, label, align="centre", colour=on, font=BOLD)
            x += width


def days(canvas: Any, height: float, month: int, figures: list[Day]) -> None:
    """How each day's flights ended: as shares, or as counts if there are few flights."""
    flown = [day.tally.flights for day in figures if day.tally.flights]
    as_shares = sum(flown) / len(flown) >= ENOUGH_FOR_SHARES
    levels = [0.0, 0.25, 0.5, 0.75, 1.0] if as_shares else ticks(0, max(flown), 4, integers=True)
    plot = Plot(canvas, height, (0.5, len(figures) + 0.5), (0, levels[-1]))
    for day in figures:
        if weekday(YEAR, month, day.day) >= SATURDAY:
            plot.shade(day.day - 0.5, day.day + 0.5)
    plot.y_axis(levels, percent if as_shares else whole, "Share of flights" if as_shares else "Flights")
    for day in figures:
        base = 0.0
        for outcome, colour in enumerate(OUTCOME_COLOURS):
            size = day.tally.share(outcome) if as_shares else day.tally.outcomes[outcome]
            plot.box(day.day - 0.38, day.day + 0.38, base, base + size, colour)
            base += size
        if as_shares:
            plot.mark(day.day - 0.42, day.day + 0.42, day.everyone_on_time)
    plot.base_line()
    plot.x_labels((day.day, str(day.day)) for day in figures)
    plot.x_title("Day of the month")
    plot.legend([*_KEY, (f"{EVERYONE}, on time", None)] if as_shares else _KEY)


def delays(canvas: Any, height: float, bins: list[Bin]) -> None:
    """Histogram of arrival delays; a mark for everyone's share in each bin."""
    width = bins[1].lower - bins[0].lower
    levels = ticks(0, max(max(bin.share, bin.everyone) for bin in bins), 4)
    plot = Plot(canvas, height, (bins[0].lower, bins[-1].lower + width), (0, levels[-1]))
    plot.y_axis(levels, percent, "Share of arrivals")
    for bin in bins:
        outcome = sum(bin.lower >= edge for edge in LATE_FROM)
        plot.box(bin.lower + 0.8, bin.lower + width - 0.8, 0, bin.share, OUTCOME_COLOURS[outcome])
        plot.mark(bin.lower + 0.8, bin.lower + width - 0.8, bin.everyone)
    plot.base_line()
    inner = [bin.lower for bin in bins[1:] if bin.lower % 30 == 0]
    plot.x_labels((edge, minutes(edge)) for edge in inner)
    plot.x_title(f"Arrival delay in minutes ({DASH} is early); the outermost bars include everything beyond")
    plot.legend([*_KEY[:4], (EVERYONE, None)])


def hours(canvas: Any, height: float, figures: list[Hour]) -> None:
    """Distribution of arrival delays by the hour of the scheduled departure."""
    low = min(min(hour.quartiles[0], hour.everyone_median) for hour in figures)
    levels = ticks(min(low, 0), max(hour.p90 for hour in figures), 5)
    first, last = figures[0].hour, figures[-1].hour
    plot = Plot(canvas, height, (first - 0.5, last + 0.5), (levels[0], levels[-1]), below=36)
    plot.y_axis(levels, minutes, "Arrival delay, minutes")
    plot.base_line()
    half = min(0.3, 9 * (last - first + 1) / WIDTH * 1.4)
    for hour in figures:
        lower, median, upper = hour.quartiles
        canvas.setStrokeColor(MUTED)
        canvas.setLineWidth(0.8)
        canvas.line(plot.x(hour.hour), plot.y(upper), plot.x(hour.hour), plot.y(hour.p90))
        plot.box(hour.hour - half, hour.hour + half, lower, upper, PALE)
        canvas.setLineWidth(1)
        canvas.line(plot.x(hour.hour - half / 2), plot.y(hour.p90), plot.x(hour.hour + half / 2), plot.y(hour.p90))
        canvas.setStrokeColor(ACCENT)
        canvas.setLineWidth(2.4)
        canvas.line(plot.x(hour.hour - half), plot.y(median), plot.x(hour.hour + half), plot.y(median))
        plot.mark(hour.hour - half * 1.3, hour.hour + half * 1.3, hour.everyone_median)
    plot.x_labels((hour, f"{hour:02}") for hour in range(first, last + 1))
    plot.x_labels(((hour.hour, whole(hour.arrivals)) for hour in figures), row=1)
    plot.x_title("Hour of scheduled departure, local time")
    plot.legend(
        [
            ("Median", ACCENT),
            ("Middle half of arrivals", PALE),
            (f"{EVERYONE}, median", None),
        ]
    )


def year(canvas: Any, height: float, figures: list[Month], current: int) -> None:
    """Share on time in every month of the year, with the number of flights."""
    plot = Plot(canvas, height, (0.5, 12.5), (0, 1), below=26)
    plot.y_axis((0, 0.25, 0.5, 0.75, 1), percent, "Share of flights on time")
    for month in figures:
        colour = ACCENT if month.month == current else PALE
        plot.box(month.month - 0.34, month.month + 0.34, 0, month.on_time, colour)
        plot.mark(month.month - 0.4, month.month + 0.4, month.everyone_on_time)
    plot.base_line()
    flown = {month.month: month.flights for month in figures}
    plot.x_labels(((number, month_abbr[number]) for number in range(1, 13)), ink=True)
    plot.x_labels(((number, whole(flown.get(number, 0))) for number in range(1, 13)), row=1)
    plot.legend([("This month", ACCENT), ("Other months", PALE), (EVERYONE, None)])
