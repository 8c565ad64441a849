"""Turns flights into figures: the numbers of a report, as plain values."""

import math
from calendar import monthrange
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from . import data
from .figures import (
    CANCELLED,
    ON_TIME,
    OUTCOMES,
    YEAR,
    Bin,
    Day,
    Flight,
    Group,
    HardDay,
    Hour,
    Model,
    Month,
    Report,
    Selection,
    Subject,
    Tally,
    Weather,
)

Numbers = NDArray[np.floating]

FEW_FLIGHTS = 20  # with at most this many, a report lists its flights instead of summarizing them
FEWEST_FOR_P90 = 10
FEWEST_FOR_DELAYS = 30
FEWEST_IN_AN_HOUR = 5
FEWEST_IN_A_GROUP = 10

_DELAY_EDGES = np.arange(-60, 195, 15)
_TABLE_ROWS = 10


def select(subject: Subject) -> Selection | None:
    """The subject and the month it is compared with; None if it had no flights."""
    flights = data.flights_of(subject)
    if flights.empty:
        return None
    previous = Subject(subject.kind, subject.code, subject.month - 1) if subject.month > 1 else None
    if previous and data.flights_of(previous).empty:
        previous = None
    return Selection(subject=subject, name=data.name_of(subject), flights=len(flights), previous=previous)


def compute(selection: Selection) -> Report:
    subject = selection.subject
    flights = data.flights_of(subject)
    partners = _groups(flights, "dest" if subject.kind == "carrier" else "carrier")
    worth_a_row = [group for group in partners if group.tally.flights >= FEWEST_IN_A_GROUP or len(partners) == 1]
    models, unknown = _models(flights)
    return Report(
        subject=subject,
        name=selection.name,
        own=_tally(flights),
        everyone=_everyone(subject.month),
        previous=_tally(data.flights_of(selection.previous)) if selection.previous else None,
        days=_days(flights, subject.month),
        delays=_delays(flights, subject.month),
        hours=_hours(flights, subject.month),
        origins=sorted(_groups(flights, "origin"), key=lambda group: group.code),
        partners=worth_a_row[:_TABLE_ROWS],
        partners_total=len(partners),
        models=models[:_TABLE_ROWS],
        models_total=len(models),
        model_unknown=len(unknown),
        model_unknown_cancelled=int((unknown["outcome"] == CANCELLED).sum()),
        hard_days=_hard_days(flights),
        ordinary_day=_ordinary_day(flights),
        year=_year(subject),
        flights=_each(flights) if len(flights) <= FEW_FLIGHTS else [],
    )


def _tally(flights: pd.DataFrame) -> Tally:
    outcomes = np.bincount(flights["outcome"].to_numpy(), minlength=len(OUTCOMES))
    delays = _arrival_delays(flights)
    return Tally(
        outcomes=outcomes.tolist(),
        median_delay=float(np.median(delays)) if len(delays) else None,
        p90_delay=round(float(np.percentile(delays, 90))) if len(delays) >= FEWEST_FOR_P90 else None,
    )


def _arrival_delays(flights: pd.DataFrame) -> Numbers:
    delays: Numbers = flights["arr_delay"].to_numpy()
    return delays[~np.isnan(delays)]


@lru_cache
def _everyone_in(month: int) -> pd.DataFrame:
    everything = data.flights()
    return everything[everything["month"] == month]


@lru_cache
def _everyone(month: int) -> Tally:
    return _tally(_everyone_in(month))


@lru_cache
def _everyone_by_day(month: int) -> dict[int, float]:
    everyone = _everyone_in(month)
    return dict((everyone["outcome"] == ON_TIME).groupby(everyone["day"]).mean())


@lru_cache
def _everyone_by_hour(month: int) -> dict[int, float]:
    everyone = _everyone_in(month)
    return dict(everyone.groupby("hour")["arr_delay"].median())


def _days(flights: pd.DataFrame, month: int) -> list[Day]:
    by_day = dict(list(flights.groupby("day")))
    everyone = _everyone_by_day(month)
    nothing = flights.iloc[:0]
    return [
        Day(day, _tally(by_day.get(day, nothing)), round(float(everyone[day]), 4))
        for day in range(1, monthrange(YEAR, month)[1] + 1)
    ]


def _delays(flights: pd.DataFrame, month: int) -> list[Bin]:
    own = _arrival_delays(flights)
    if len(own) < FEWEST_FOR_DELAYS:
        return []
    shares = _histogram(own)
    everyone = _histogram(_arrival_delays(_everyone_in(month)))
    return [
        Bin(int(lower), round(float(share), 4), round(float(all_flights), 4))
        for lower, share, all_flights in zip(_DELAY_EDGES - 15, shares, everyone, strict=False)
    ]


def _histogram(delays: Numbers) -> Numbers:
    """Shares of the delays below the first edge, between neighbouring edges, and above the last edge."""
    return np.bincount(np.digitize(delays, _DELAY_EDGES), minlength=len(_DELAY_EDGES) + 1) / len(delays)


def _hours(flights: pd.DataFrame, month: int) -> list[Hour]:
    if len(_arrival_delays(flights)) < FEWEST_FOR_DELAYS:
        return []
    hours = []
    for hour, departures in flights.groupby("hour"):
        delays = _arrival_delays(departures)
        if len(delays) < FEWEST_IN_AN_HOUR:
            continue
        *quartiles, p90 = (round(float(value), 1) for value in np.percentile(delays, [25, 50, 75, 90]))
        hours.append(Hour(int(hour), len(delays), quartiles, p90, float(_everyone_by_hour(month)[hour])))
    return hours


def _groups(flights: pd.DataFrame, column: str) -> list[Group]:
    """The flights grouped by this column, the lowest share on time first."""
    name = data.carrier_name if column == "carrier" else data.city
    groups = [Group(str(code), name(str(code)), _tally(part)) for code, part in flights.groupby(column, observed=True)]
    return sorted(groups, key=lambda group: (group.tally.on_time / group.tally.flights, -group.tally.flights))


def _models(flights: pd.DataFrame) -> tuple[list[Model], pd.DataFrame]:
    """Aircraft models, the most used first, and the flights whose aircraft is unknown."""
    with_planes = flights.join(data.planes(), on="tailnum")
    known = with_planes[with_planes["model"].notna()]
    models = [
        Model(
            name=str(name),
            aircraft=int(part["tailnum"].nunique()),
            seats=_number(part["seats"].median()),
            age=_number(YEAR - part.drop_duplicates("tailnum")["year"].median()),
            tally=_tally(part),
        )
        for name, part in known.groupby("model")
    ]
    models.sort(key=lambda model: (-model.tally.flights, model.name))
    return models, with_planes[with_planes["model"].isna()]


def _hard_days(flights: pd.DataFrame) -> list[HardDay]:
    """The five days with the lowest share on time, excluding days with few flights."""
    by_day = [(int(day), part, _tally(part)) for day, part in flights.groupby("day")]
    typical = float(np.median([tally.flights for _, _, tally in by_day]))
    hard = [
        (day, part, tally)
        for day, part, tally in by_day
        if tally.on_time < tally.flights and tally.flights >= typical / 2
    ]

    def hardness(entry: tuple[int, pd.DataFrame, Tally]) -> tuple[float, float, float, int]:
        day, part, tally = entry
        lost = tally.flights - tally.arrivals  # a flight that never arrived counts as worse than a late one
        delay = float(np.nansum(part["arr_delay"]))
        return tally.on_time / tally.flights, -lost / tally.flights, -delay / tally.flights, day

    hard.sort(key=hardness)
    return [HardDay(day, tally, _weather(part)) for day, part, tally in hard[:5]]


def _ordinary_day(flights: pd.DataFrame) -> Weather:
    """The median, over the days of the month, of each weather value in the table of hard days."""
    seen = [_weather(part) for _, part in flights.groupby("day")]
    fields = ("coldest", "warmest", "wind", "precipitation", "visibility")
    values = {field: [value for day in seen if (value := getattr(day, field)) is not None] for field in fields}
    return Weather(**{field: float(np.median(found)) if found else None for field, found in values.items()})


def _weather(flights_of_a_day: pd.DataFrame) -> Weather:
    first = flights_of_a_day.iloc[0]
    day = (int(first["month"]), int(first["day"]))
    observations = data.weather()
    if day not in observations.index:
        return Weather(None, None, None, None, None)
    seen = observations.loc[[day]]
    seen = seen[seen["origin"].isin(flights_of_a_day["origin"].unique())]
    return Weather(
        coldest=_number(seen["temp"].min()),
        warmest=_number(seen["temp"].max()),
        wind=_number(seen["wind"].max()),
        precipitation=_number(seen.groupby("origin")["precip"].sum(min_count=1).max()),
        visibility=_number(seen["visib"].min()),
    )


def _year(subject: Subject) -> list[Month]:
    months = []
    for month, part in data.year_of(subject).groupby("month"):
        own, everyone = _tally(part), _everyone(int(month))
        shares = [round(tally.on_time / tally.flights, 4) for tally in (own, everyone)]
        months.append(Month(int(month), own.flights, *shares))
    return months


def _each(flights: pd.DataFrame) -> list[Flight]:
    with_planes = flights.join(data.planes(), on="tailnum")
    return [
        Flight(
            day=int(row.day),
            carrier=str(row.carrier),
            number=int(row.flight),
            origin=str(row.origin),
            destination=str(row.dest),
            scheduled=int(row.sched_dep_time),
            departure_delay=_number(row.dep_delay),
            arrival_delay=_number(row.arr_delay),
            outcome=int(row.outcome),
            model=row.model if isinstance(row.model, str) else None,
        )
        for row in with_planes.itertuples()
    ]


def _number(value: float) -> float | None:
    """None for NaN, which means that nothing was recorded and which JSON cannot represent."""
    return None if math.isnan(value) else round(float(value), 2)
