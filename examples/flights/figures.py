"""The payloads between steps: plain dataclasses that convert to JSON and import no large libraries."""

from calendar import month_name
from dataclasses import dataclass
from typing import Literal

YEAR = 2013

# How a scheduled flight can end, best first; a Tally counts outcomes in this order.
OUTCOMES = (
    "On time",
    "15\N{EN DASH}59 min late",
    "60\N{EN DASH}119 min late",
    "120+ min late",
    "Diverted",
    "Cancelled",
)
ON_TIME, DIVERTED, CANCELLED = 0, 4, 5
# Minutes after schedule. Below the first limit a flight is on time, by the rule of the US Department of
# Transportation.
LATE_FROM = (15, 60, 120)


@dataclass(frozen=True)
class Subject:
    """What one report is about: a carrier or a destination in one month of the year."""

    kind: Literal["carrier", "destination"]
    code: str
    month: int

    def __post_init__(self) -> None:
        if not 1 <= self.month <= 12:
            raise ValueError(f"month must be from 1 to 12, not {self.month}")

    @property
    def period(self) -> str:
        return f"{month_name[self.month]} {YEAR}"

    @property
    def path(self) -> str:
        """The path of its report in the output folder."""
        return f"{YEAR}-{self.month:02}/{self.code}.pdf"


@dataclass
class Selection:
    """A subject that exists, and the earlier month to compare it with if there is one."""

    subject: Subject
    name: str
    flights: int
    previous: Subject | None


@dataclass
class Tally:
    """How a set of flights ended."""

    outcomes: list[int]
    median_delay: float | None  # minutes at arrival; None without arrivals
    p90_delay: int | None  # None with too few arrivals for a percentile

    @property
    def flights(self) -> int:
        return sum(self.outcomes)

    @property
    def arrivals(self) -> int:
        return sum(self.outcomes[:DIVERTED])

    @property
    def on_time(self) -> int:
        return self.outcomes[ON_TIME]

    @property
    def cancelled(self) -> int:
        return self.outcomes[CANCELLED]

    def share(self, outcome: int) -> float:
        return self.outcomes[outcome] / self.flights if self.flights else 0.0


@dataclass
class Group:
    """Part of the flights: those of one departure airport, destination, carrier or aircraft model."""

    code: str
    name: str
    tally: Tally


@dataclass
class Model:
    """The flights made with one aircraft model."""

    name: str
    aircraft: int
    seats: float | None
    age: float | None
    tally: Tally


@dataclass
class Day:
    day: int
    tally: Tally
    everyone_on_time: float


@dataclass
class Bin:
    """Share of arrivals with a delay from `lower` to the next bin's `lower`. The outermost bins are open-ended."""

    lower: int
    share: float
    everyone: float


@dataclass
class Hour:
    """Arrival delays of the flights scheduled to leave in one hour of the day."""

    hour: int
    arrivals: int
    quartiles: list[float]
    p90: float
    everyone_median: float


@dataclass
class Weather:
    """The worst readings of one day at the departure airports in use; None where nothing was recorded."""

    coldest: float | None
    warmest: float | None
    wind: float | None
    precipitation: float | None
    visibility: float | None


@dataclass
class HardDay:
    day: int
    tally: Tally
    weather: Weather


@dataclass
class Month:
    month: int
    flights: int
    on_time: float
    everyone_on_time: float


@dataclass
class Flight:
    """One flight, in a report with few enough flights to list them."""

    day: int
    carrier: str
    number: int
    origin: str
    destination: str
    scheduled: int  # local time as HHMM
    departure_delay: float | None
    arrival_delay: float | None
    outcome: int
    model: str | None


@dataclass
class Report:
    """All figures of one report."""

    subject: Subject
    name: str
    own: Tally
    everyone: Tally  # all flights from New York in that month
    previous: Tally | None
    days: list[Day]
    delays: list[Bin]
    hours: list[Hour]
    origins: list[Group]
    partners: list[Group]  # a carrier's destinations, a destination's carriers; worst first
    partners_total: int
    models: list[Model]
    models_total: int
    model_unknown: int
    model_unknown_cancelled: int
    hard_days: list[HardDay]
    ordinary_day: Weather
    year: list[Month]
    flights: list[Flight]  # empty if there are too many to list


@dataclass
class Draft:
    """A rendered report before it is filed; `path` is relative to the output folder."""

    subject: Subject
    path: str
    pages: int


@dataclass
class Filed:
    path: str
    pages: int
    bytes: int
