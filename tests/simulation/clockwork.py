"""An event loop with simulated time, in which external events arrive in random order."""

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
    """The clock jumps to the next event, so nothing waits. The same seed gives the same history.

    The guarantees of asyncio hold: callbacks run in the order in which they became ready. What is random is what is
    random in a real loop: how long things take, which of several simultaneous events comes first, and how late the
    loop looks (so timers with different times may end in the same turn).
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
        """Schedule an event outside of the loop, which notices it at its next look."""
        heapq.heappush(self._events, (self._now + delay, next(self._serial), event))

    def stall(self, seconds: float) -> None:
        """Stop this process for a time, but not the others."""
        self._stall += seconds

    def note(self, *what: Any) -> None:
        self.trace.append((self._now, *what))

    def story(self) -> str:
        """The last events."""
        return "\n".join(f"{at:12.6f}  {' '.join(map(str, what))}" for at, *what in self.trace)

    # The interface of a selector

    def select(self, timeout: float | None) -> list[Callable[[], Any]]:
        first = self._events[0][0] if self._events else float("inf")
        until = min(first, float("inf") if timeout is None else self._now + timeout)
        assert until < float("inf"), "deadlock: everything waits, and no event is scheduled"
        until = max(until, self._now) + self.rng.expovariate(20_000) + self._stall
        self._stall = 0.0
        # External events happen while this process is late.
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
def simulated_time(seed: int) -> Iterator[Clockwork]:
    """Replace all monotonic clocks and random generators of this process by those of the loop."""
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
