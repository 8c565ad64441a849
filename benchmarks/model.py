"""The sizes of the benchmarks, and how samples become a row of the table."""

from dataclasses import dataclass, field, replace
from statistics import median

OURS = "underway"


@dataclass(frozen=True)
class Sizes:
    """How much work each benchmark does. `cpu` maps the milliseconds that a task burns to the number of tasks.

    `backlog` is the number of pending runs in the table; `claims` is the number of claims measured beside them.
    """

    runs: int = 40_000
    two_step: int = 20_000
    bulk: int = 100_000
    cpu: tuple[tuple[int, int], ...] = ((20, 500), (200, 60))
    latencies: int = 200
    kills: int = 20
    warm_up: int = 2000
    backlog: int = 1_000_000
    claims: int = 200
    snapshot_seconds: float = 180
    enqueues: int = 16_000
    steady_minutes: float = 1

    @staticmethod
    def quick() -> "Sizes":
        return Sizes(6000, 3000, 20_000, ((20, 100), (200, 12)), 40, 4, 500, 10_000, 40, 2, 1600, 0.1)

    def with_runs(self, runs: int) -> "Sizes":
        """The same sizes, with this number of runs wherever it determines the duration."""
        return replace(
            self,
            runs=runs,
            two_step=runs,
            bulk=runs,
            cpu=tuple((milliseconds, min(tasks, runs)) for milliseconds, tasks in self.cpu),
            latencies=min(self.latencies, runs),
            kills=min(self.kills, runs),
            warm_up=min(self.warm_up, runs),
            backlog=min(self.backlog, 100 * runs),
            claims=min(self.claims, runs),
            snapshot_seconds=min(self.snapshot_seconds, runs / 10),
            enqueues=min(self.enqueues, runs),
            steady_minutes=min(self.steady_minutes, runs / 600),
        )

    def scaled(self, usual: int, *, least: int = 4) -> int:
        """Scale a number that is not a field here, in proportion to `runs`."""
        return max(least, round(usual * self.runs / Sizes.runs))


@dataclass(frozen=True)
class Point:
    """The position of a row on a curve: the rows of one series are the points of one line. `label` is x as text."""

    series: str
    x: float
    label: str


@dataclass(frozen=True)
class Row:
    """One measured quantity: its samples and those of its baselines, in the order of the rounds.

    `floor` and `goal` apply to the ratio to the baseline `judged_by`; without it, to the median itself.
    """

    name: str
    unit: str
    samples: dict[str, list[float]]
    lower_is_better: bool = False
    floor: float | None = None
    goal: float | None = None
    judged_by: str | None = None
    notes: dict[str, object] = field(default_factory=dict)
    point: Point | None = None
    disturbed: float | None = None  # the share of the machine that others used during the worst sample, if too large

    @property
    def ours(self) -> float:
        return median(self.samples[OURS])

    @property
    def baselines(self) -> list[str]:
        return [name for name in self.samples if name != OURS]

    def baseline(self, name: str) -> float:
        return median(self.samples[name])

    def ratio(self, baseline: str) -> float:
        """The median over the pairs: a temporary disturbance affects both halves of a pair."""
        return median(a / b for a, b in zip(self.samples[OURS], self.samples[baseline], strict=True))

    @property
    def judged(self) -> float:
        return self.ours if self.judged_by is None else self.ratio(self.judged_by)

    def meets(self, bound: float | None) -> bool | None:
        if bound is None:
            return None
        return self.judged <= bound if self.lower_is_better else self.judged >= bound


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
