"""Samples in turn, on a machine as quiet as it will get."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from benchmarks.machine import Neighbours
from benchmarks.model import Row
from benchmarks.stage import Stage

T = TypeVar("T")

# Above this part of the machine used by others a sample says more about them than about us.
QUIET = 0.05
_LOOK_SECONDS = 0.5


@dataclass
class Pairs:
    """`patience`: how many seconds a sample may wait for the others, all of its rounds together."""

    stage: Stage
    rounds: int
    patience: float
    say: Callable[[str], None]
    neighbours: list[float] = field(default_factory=list)

    def alternate(self, forms: dict[str, Callable[[], T]], about: str = "") -> dict[str, list[T]]:
        """One sample of every form in each round; the next round begins with the next form.

        A sample that was disturbed is taken again while there is patience; it is judged by what others used of the
        machine, never by what it says.
        """
        samples: dict[str, list[T]] = {name: [] for name in forms}
        order = list(forms)
        deadline = time.monotonic() + self.patience
        for number in range(self.rounds):
            for name in order:
                self.say(f"{about}round {number + 1} of {self.rounds}: {name}")
                samples[name].append(self._sample(forms[name], deadline))
            order = [*order[1:], order[0]]
        return samples

    def watched(self, form: Callable[[], T]) -> T:
        """One sample that is not repeated."""
        return self._sample(form, time.monotonic())

    def _sample(self, form: Callable[[], T], deadline: float) -> T:
        while True:
            self._await_quiet(deadline)
            others = Neighbours(self.stage)
            value = form()
            share = others.share()
            if share <= QUIET or time.monotonic() > deadline:
                self.neighbours.append(share)
                return value

    def _await_quiet(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            others = Neighbours(self.stage)
            time.sleep(_LOOK_SECONDS)
            if others.share() <= QUIET:
                return

    def judged(self, rows: list[Row]) -> list[Row]:
        """These rows, marked as disturbed if the machine was not quiet: a median over noise is still noise."""
        if not self.neighbours or max(self.neighbours) <= QUIET:
            return rows
        return [replace(row, disturbed=max(self.neighbours)) for row in rows]
