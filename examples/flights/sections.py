"""The content of each section of a report."""

from calendar import month_abbr, month_name
from collections.abc import Callable
from functools import partial

from reportlab.platypus import Flowable, Paragraph

from . import charts, wording
from .compute import FEWEST_FOR_DELAYS, FEWEST_FOR_P90, FEWEST_IN_A_GROUP, FEWEST_IN_AN_HOUR
from .figures import CANCELLED, OUTCOMES, YEAR, Group, Report, Tally, Weather
from .pages import Section
from .plot import Chart
from .style import (
    BODY,
    CAPTION,
    DASH,
    LEAD,
    SUBTITLE,
    TITLE,
    clock,
    minutes,
    optional,
    percent,
    plural,
    whole,
)
from .tables import Column, Headlines, on_time, table

_ENOUGH_MODELS = 0.2  # with a smaller share of known aircraft, the table would mislead
_TALLY_COLUMNS: list[Column] = [
    ("Flights", 50, True),
    ("On time", 100, False),
    ("Cancelled", 56, True),
    ("Median\ndelay, min", 58, True),
    ("90th percentile\ndelay, min", 72, True),
]


def opening(report: Report) -> Section:
    return Section(
        "",
        [
            Paragraph(wording.title(report), TITLE),
            Paragraph(f"On-time performance of flights from New York, {report.subject.period}", SUBTITLE),
            Paragraph(wording.lead(report), LEAD),
            Paragraph(wording.body(report), BODY),
            Headlines(_headlines(report)),
        ],
    )


def _headlines(report: Report) -> list[tuple[str, str, str, str]]:
    own, everyone, before = report.own, report.everyone, report.previous

    def box(label: str, value: Callable[[Tally], str]) -> tuple[str, str, str, str]:
        month = report.subject.month
        earlier = "No earlier data"
        if month > 1:
            earlier = f"{month_abbr[month - 1]}: {value(before) if before else 'no flights'}"
        return label, value(own), f"All New York: {value(everyone)}", earlier

    def delay(value: float | None) -> str:
        return "n/a" if value is None else f"{minutes(value)} min"

    return [
        box("Flights scheduled", lambda tally: whole(tally.flights)),
        box("Arrived on time", lambda tally: percent(tally.share(0), 1)),
        box("Cancelled", lambda tally: percent(tally.share(CANCELLED), 1)),
        box("Median arrival delay", lambda tally: delay(tally.median_delay)),
        box("90th percentile delay", lambda tally: delay(tally.p90_delay)),
    ]


def outcomes(report: Report) -> Section:
    bars = [(report.subject.code, report.own), ("All New York", report.everyone)]
    if report.previous:
        bars.append((f"{report.subject.code}, {month_abbr[report.subject.month - 1]}", report.previous))
    height = 18 + 22 * len(bars)
    chart = Chart(partial(charts.outcomes, bars=bars), height, height + 10)
    return Section("How the flights ended", [chart])


def days(report: Report) -> Section:
    busiest = max(day.tally.flights for day in report.days)
    heights = (110, 130) if busiest < 3 else (130, 260)
    chart = Chart(partial(charts.days, month=report.subject.month, figures=report.days), *heights)
    gaps = "" if all(day.tally.flights for day in report.days) else " Days without flights are blank."
    return Section("Day by day", [chart, _caption(f"Shaded: weekends.{gaps}")])


def origins(report: Report) -> Section | None:
    if len(report.origins) < 2:
        return None
    return Section("By departure airport", [_tally_table("Airport", report.origins, report)])


def delays(report: Report) -> Section:
    chart = Chart(partial(charts.delays, bins=report.delays), 130, 240)
    return Section(
        "How late the flights arrived",
        [chart, _caption(f"{plural(report.own.arrivals, 'arrival')}; bars are 15 minutes wide.")],
    )


def hours(report: Report) -> Section:
    title = "Delay by hour of departure"
    if not report.hours:
        reason = f"no hour of the day has {FEWEST_IN_AN_HOUR} arrivals."
        return Section(title, [Paragraph(f"Not enough flights: {reason}", BODY)])
    chart = Chart(partial(charts.hours, figures=report.hours), 140, 240)
    caption = (
        "The stem ends at the 90th percentile. Below each hour, the number of arrivals; "
        f"hours with fewer than {FEWEST_IN_AN_HOUR} are left out."
    )
    return Section(title, [chart, _caption(caption)])


def partners(report: Report) -> Section | None:
    noun = "destination" if report.subject.kind == "carrier" else "carrier"
    if report.partners_total == 1:
        return None  # the opening paragraph names the only one
    title = f"{noun.capitalize()}s, the least punctual first"
    left_out = f"{noun.capitalize()}s with fewer than {FEWEST_IN_A_GROUP} flights are left out."
    if not report.partners:
        return Section(title, [Paragraph(f"Not enough flights: {left_out.lower()}", BODY)])
    shown = f"{len(report.partners)} of {plural(report.partners_total, noun)}. {left_out}"
    caption = [] if len(report.partners) == report.partners_total else [_caption(shown)]
    return Section(title, [_tally_table(noun.capitalize(), report.partners, report), *caption])


def _tally_table(heading: str, groups: list[Group], report: Report) -> Flowable:
    rows = [[f"{group.name} ({group.code})", *_tally_cells(group.tally)] for group in groups]
    return table([(heading, 0, False), *_TALLY_COLUMNS], [*rows, ["All", *_tally_cells(report.own)]], summary_rows=1)


def _tally_cells(tally: Tally) -> list[object]:
    return [
        whole(tally.flights),
        on_time(tally),
        whole(tally.cancelled),
        minutes(tally.median_delay),
        minutes(tally.p90_delay),
    ]


def hard_days(report: Report) -> Section:
    title = "The hardest days, and their weather"
    if not report.hard_days:
        return Section(title, [Paragraph("None: every flight arrived on time.", BODY)])
    columns: list[Column] = [
        ("Day", 0, False),
        ("Flights", 50, True),
        ("On time", 100, False),
        ("Cancelled", 56, True),
        ("Temperature,\n°F", 66, True),
        ("Strongest\nwind, mph", 56, True),
        ("Rain or\nsnow, in", 50, True),
        ("Lowest\nvisibility, mi", 58, True),
    ]
    rows: list[list[object]] = [
        [
            wording.date(report, day.day),
            whole(day.tally.flights),
            on_time(day.tally),
            whole(day.tally.cancelled),
            *_weather_cells(day.weather),
        ]
        for day in report.hard_days
    ]
    days_flown = sum(1 for day in report.days if day.tally.flights)
    if days_flown > 1:
        rows.append(["Median of all days", "", "", "", *_weather_cells(report.ordinary_day)])
    caption = _caption("The worst reading of the day at any of the departure airports in use; gusts count as wind.")
    return Section(title, [table(columns, rows, summary_rows=len(rows) - len(report.hard_days)), caption])


def _weather_cells(weather: Weather) -> list[str]:
    return [
        DASH if weather.coldest is None else f"{optional(weather.coldest)} to {optional(weather.warmest)}",
        optional(weather.wind),
        optional(weather.precipitation, 2),
        optional(weather.visibility, 1),
    ]


def models(report: Report) -> Section:
    title = "Aircraft"
    known = 1 - report.model_unknown / report.own.flights
    if known < _ENOUGH_MODELS:
        found = report.own.flights - report.model_unknown or "none"
        explained = (
            f"The registry has the aircraft of {found} of the {whole(report.own.flights)} flights: too few to compare."
        )
        return Section(title, [Paragraph(explained, BODY)])
    columns: list[Column] = [
        ("Model", 0, False),
        ("Aircraft", 46, True),
        ("Seats", 38, True),
        ("Age,\nyears", 38, True),
        *_TALLY_COLUMNS[:2],
        *_TALLY_COLUMNS[3:],
    ]
    rows: list[list[object]] = []
    for model in report.models:
        flights, punctual, _, *late = _tally_cells(model.tally)
        rows.append(
            [model.name, whole(model.aircraft), optional(model.seats), optional(model.age), flights, punctual, *late]
        )
    caption = "Seats and age are medians. "
    if report.models_total > len(report.models):
        caption += f"The {len(report.models)} most used of {report.models_total} models. "
    if report.model_unknown:
        unknown, cancelled = report.model_unknown, report.model_unknown_cancelled
        caption += f"The aircraft of {plural(unknown, 'flight')} ({percent(1 - known)}) is not known"
        if cancelled == unknown:
            caption += "; it was cancelled." if unknown == 1 else "; all of these were cancelled."
        else:
            caption += (
                f"; {cancelled:,} of these {'was' if cancelled == 1 else 'were'} cancelled." if cancelled else "."
            )
    return Section(title, [table(columns, rows), _caption(caption.strip())])


def year(report: Report) -> Section:
    title = f"Every month of {YEAR}"
    if len(report.year) == 1:
        only = f"{month_name[report.subject.month]} is the only month with flights."
        return Section(title, [Paragraph(only, BODY)])
    chart = Chart(partial(charts.year, figures=report.year, current=report.subject.month), 110, 180)
    return Section(title, [chart, _caption("Below each month, the number of flights scheduled.")])


def every_flight(report: Report) -> Section:
    columns: list[Column] = [
        ("Day", 62, False),
        ("Flight", 48, False),
        ("Route", 56, False),
        ("Aircraft", 0, False),
        ("Scheduled\ndeparture", 52, True),
        ("Departure\ndelay, min", 54, True),
        ("Arrival\ndelay, min", 54, True),
        ("Outcome", 76, False),
    ]
    rows = [
        [
            wording.date(report, flight.day),
            f"{flight.carrier} {flight.number}",
            f"{flight.origin}{DASH}{flight.destination}",
            flight.model or DASH,
            clock(flight.scheduled),
            minutes(flight.departure_delay),
            minutes(flight.arrival_delay),
            OUTCOMES[flight.outcome],
        ]
        for flight in report.flights
    ]
    return Section("Every flight", [table(columns, rows), _caption(f"Local time. {DASH}: not recorded.")])


def too_few(report: Report) -> Section:
    arrivals = report.own.arrivals
    explained = (
        f"Not enough flights: the distribution of delays and their pattern over the day need at least "
        f"{FEWEST_FOR_DELAYS} arrivals; there {'was' if arrivals < 2 else 'were'} {arrivals or 'none'}."
    )
    return Section("Delays in general", [Paragraph(explained, BODY)])


def notes(report: Report) -> Section:
    text = (
        "A flight is <b>on time</b> if it arrived, and less than 15 minutes after schedule. Shares are of all "
        "scheduled flights, so cancelled and diverted flights count as not on time, as in the reports of the US "
        "Department of Transportation. <b>Cancelled</b>: no departure was recorded. <b>Diverted</b>: it left, and no "
        f"arrival at its destination was recorded. <b>Delays</b> are those of flights that arrived; {DASH} is early. "
        f"A 90th percentile needs at least {FEWEST_FOR_P90} arrivals. The <b>line in the bar of a table</b> is the 95% "
        "confidence interval of the share. <b>All New York</b>: all flights from Newark (EWR), Kennedy (JFK) and "
        "LaGuardia (LGA) in the month, including these."
    )
    return Section("Terms", [Paragraph(text, CAPTION)])


def _caption(text: str) -> Flowable:
    return Paragraph(text, CAPTION)
