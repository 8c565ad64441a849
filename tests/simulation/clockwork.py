"""An event loop whose time is made up, and in which whatever comes from outside comes in an order of chance."""

import asyncio
import heapq
import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from underway.guardian import lease_clock


class Clockwork(asyncio.BaseEventLoop):
    """Nothing waits: the clock jumps to the next event. One seed, one history.

    What asyncio promises is kept: callbacks run in the order in which they became ready. Left to chance is what is left
    to chance in a real loop: how long things take, which of those that are seen together comes first, and how late we
    are to look (so that timers of different times end in the same turn).
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.rng = random.Random(seed)
        self.turns = 0
        self.after_turn: Callable[[], None] = lambda: None
        self.trace: deque[tuple[Any, ...]] = deque(maxlen=80)
        self._now = 1000.0
        self._events: list[tuple[float, int, Callable[[], Any]]] = []
        self._serial = itertools.count()
        self._stall = 0.0
        self._selector = self
        self.fault: BaseException | None = None
        self.set_exception_handler(self._note_fault)

    def time(self) -> float:
        return self._now

    def happen(self, delay: float, event: Callable[[], Any]) -> None:
        """Something outside of the loop, which then sees it when it looks the next time."""
        heapq.heappush(self._events, (self._now + delay, next(self._serial), event))

    def stall(self, seconds: float) -> None:
        """Our process does not run for so long; all others do."""
        self._stall += seconds

    def note(self, *what: Any) -> None:
        self.trace.append((self._now, *what))

    def story(self) -> str:
        """The last events."""
        return "\n".join(f"{at:12.6f}  {' '.join(map(str, what))}" for at, *what in self.trace)

    # What BaseEventLoop asks of a selector

    def select(self, timeout: float | None) -> list[Callable[[], Any]]:
        first = self._events[0][0] if self._events else float("inf")
        until = min(first, float("inf") if timeout is None else self._now + timeout)
        assert until < float("inf"), "everybody waits, and nothing will ever happen"
        until = max(until, self._now) + self.rng.expovariate(20_000) + self._stall
        self._stall = 0.0
        # Events outside go on while we are late.
        seen = []
        while self._events and self._events[0][0] <= until:
            at, _, event = heapq.heappop(self._events)
            self._now = max(self._now, at)
            seen.append(event)
        self._now = until
        self.rng.shuffle(seen)
        return seen

    def _process_events(self, event_list: list[Callable[[], Any]]) -> None:
        for event in event_list:
            self._ready.append(asyncio.Handle(event, (), self))  # type: ignore[attr-defined]

    def _write_to_self(self) -> None:
        raise AssertionError("there are no other threads here")

    def _run_once(self) -> None:
        self.turns += 1
        super()._run_once()  # type: ignore[misc]
        if self.fault is None:
            try:
                self.after_turn()
            except Exception as fault:
                self.fault = fault
        if self.fault is not None:
            raise self.fault

    def _note_fault(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.fault = self.fault or context.get("exception") or AssertionError(context["message"])


@contextmanager
def made_up_time(seed: int) -> Iterator[Clockwork]:
    """All monotonic clocks and all dice of this process are those of the loop."""
    loop = Clockwork(seed)
    monotonic, leases, unseeded, state = time.monotonic, lease_clock.now, random.Random, random.getstate()

    class Seeded(unseeded):  # type: ignore[misc, valid-type]
        def __init__(self, given: int | None = None) -> None:
            super().__init__(loop.rng.getrandbits(32) if given is None else given)

    time.monotonic, random.Random = loop.time, Seeded  # type: ignore[misc, assignment]
    lease_clock.now = loop.time
    random.seed(seed)
    try:
        yield loop
    finally:
        time.monotonic, random.Random = monotonic, unseeded  # type: ignore[misc]
        lease_clock.now = leases
        random.setstate(state)
        loop.close()
