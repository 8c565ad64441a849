"""The content of a plot as plain data: findings.py selects it, drawing.py draws it."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Bar:
    """`parts` are stacked in order; a plain bar has a single part with an empty name."""

    label: str
    parts: dict[str, float]
    ours: bool = True

    @property
    def total(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Bars:
    bars: list[Bar]


@dataclass(frozen=True)
class Line:
    """One value for each tick of the panel."""

    label: str
    values: list[float]
    ours: bool


@dataclass(frozen=True)
class Curves:
    """One panel. Its points are evenly spaced and labelled with `ticks`."""

    heading: str
    x_label: str
    ticks: list[str]
    lines: list[Line]
    log: bool = False
    share: bool = False


@dataclass(frozen=True)
class Panels:
    panels: list[Curves]


@dataclass(frozen=True)
class Distribution:
    values: list[float]
    unit: str
    marks: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Plot:
    """`title` states the finding; `subtitle` says what the numbers are."""

    name: str
    title: str
    subtitle: str
    footer: str
    content: Bars | Panels | Distribution
