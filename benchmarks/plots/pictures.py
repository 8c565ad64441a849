"""What a plot shows, as plain data: chosen in findings.py, drawn in drawing.py."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Bar:
    """`parts` are stacked in their order; a plain bar has one, without a name."""

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
    """One value for each tick of its panel."""

    label: str
    values: list[float]
    ours: bool


@dataclass(frozen=True)
class Curves:
    """One panel. Its points stand at even distances, with `ticks` as their names."""

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
class Picture:
    """`title` is what one is to remember; `subtitle` says what the numbers are."""

    name: str
    title: str
    subtitle: str
    footer: str
    content: Bars | Panels | Distribution
