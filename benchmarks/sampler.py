"""Takes samples in turn, while the machine is as quiet as possible."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from benchmarks.machine import Neighbours
from benchmarks.model import Row
from benchmarks.testbed import Testbed

T = TypeVar("T")

# If others use more than this share of the machine, a sample says more about them than about underway.
QUIET = 0.05
_POLL_SECONDS = 0.5


@dataclass
class Sampler:
    """`patience`: for how many seconds, over all rounds, the samples may wait for a quiet machine."""

    testbed: Testbed
    rounds: int
    patience: float
    show_progress: Callable[[str], None]
    neighbours: list[float] = field(default_factory=list)

    def alternate(self, variants: dict[str, Callable[[], T]], prefix: str = "") -> dict[str, list[T]]:
        """Take one sample of every variant in each round; each round starts with a different variant.

        A disturbed sample is repeated until `patience` is used up. Only the load from others decides that, never the
        sample's own value.
        """
        samples: dict[str, list[T]] = {name: [] for name in variants}
        order = list(variants)
        deadline = time.monotonic() + self.patience
        for number in range(self.rounds):
            for name in order:
                self.show_progress(f"{prefix}round {number + 1} of {self.rounds}: {name}")
                samples[name].append(self._sample(variants[name], deadline))
            order = [*order[1:], order[0]]
        return samples

    def sample_once(self, variant: Callable[[], T]) -> T:
        """Take one sample, without waiting or repeating."""
        return self._sample(variant, time.monotonic())

    def _sample(self, variant: Callable[[], T], deadline: float) -> T:
        while True:
            self._await_quiet(deadline)
            others = Neighbours(self.testbed)
            value = variant()
            share = others.share()
            if share <= QUIET or time.monotonic() > deadline:
                self.neighbours.append(share)
                return value

    def _await_quiet(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            others = Neighbours(self.testbed)
            time.sleep(_POLL_SECONDS)
            if others.share() <= QUIET:
                return

    def marked_if_disturbed(self, rows: list[Row]) -> list[Row]:
        """The rows, marked as disturbed if the machine was not quiet: a median over noise is still noise."""
        if not self.neighbours or max(self.neighbours) <= QUIET:
            return rows
        return [replace(row, disturbed=max(self.neighbours)) for row in rows]
