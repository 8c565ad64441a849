"""Plays a world from a seed, on a simulated clock and without processes."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from simulation.clockwork import Clockwork, simulated_time
from simulation.slow_line import SlowLine
from simulation.supervisor import MOST_CLAIMED, MOST_PREFETCHED, MOST_UNCOMMITTED
from simulation.world import World
from underway.supervisor import service
from underway.supervisor.loops import commit
from underway.supervisor.tasks import dispatch, prefetch
from underway.supervisor.workers import factory, limits, pool
from underway.supervisor.workers.launch import LaunchSpec


def simulate(seed: int, turns: int) -> World:
    """Play this many turns of the loop with faults, and then until every run has ended. Raises the first violation."""
    return _play(lambda loop: World(loop, turns), seed, f"{seed} {turns}")


def simulate_slow_line(seed: int) -> World:
    """Play on a slow network until every run has ended. Raises the first violation."""
    return _play(SlowLine, seed, f"{seed} slow")


def _play(create: Callable[[Clockwork], World], seed: int, command: str) -> World:
    with simulated_time(seed) as loop, _without_a_system():
        asyncio.set_event_loop(loop)
        world = create(loop)
        try:
            loop.run_until_complete(loop.create_task(world.play()))
        except Exception as fault:
            raise AssertionError(
                f"{loop.story()}\n{type(fault).__name__}: {fault}\nin turn {loop.turns}; once more, and only this: "
                f"PYTHONPATH=tests python -m simulation {command}"
            ) from fault
        else:
            return world
        finally:
            _abandon(world)
            asyncio.set_event_loop(None)


@contextmanager
def _without_a_system() -> Iterator[None]:
    logger = logging.getLogger("underway")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    with (
        patch.object(factory, "WorkerProcess", _fake_worker),
        patch.object(pool, "Descendants", NoDescendants),
        patch.object(limits, "Memory", Weights),
        patch.object(service, "KernelKills", NoKernelKills),
        patch.object(commit, "MOST_UNCOMMITTED", MOST_UNCOMMITTED),
        patch.object(dispatch, "MOST_CLAIMED", MOST_CLAIMED),
        patch.object(prefetch, "MOST_PREFETCHED", MOST_PREFETCHED),
    ):
        try:
            yield
        finally:
            logger.setLevel(level)


def _fake_worker(spec: LaunchSpec, generation: int, usage: Any, listener: Any, *_: Any, **__: Any) -> Any:
    return listener.simulated.start_worker(spec.slot, listener, generation, usage)


class NoDescendants:
    def __init__(self, *_: Any) -> None:
        self.guardian = self.temporary = self

    def expect_word_by(self, expires_at: float) -> None: ...
    def stand_down(self) -> None: ...
    def check(self) -> None: ...
    def for_worker(self, serial: int) -> None: ...
    def tend(self) -> None: ...
    async def settle(self) -> None: ...
    def dismiss(self) -> None: ...


class NoKernelKills:
    def poll(self, now: float) -> None: ...
    def explains_one(self) -> bool:
        return False


class Weights:
    """Sometimes a worker is too large."""

    pause = 0.25

    def sample(self, pids: Any) -> dict[int, int]:
        loop: Any = asyncio.get_running_loop()
        return {pid: 2000 if loop.rng.random() < 0.02 else 1 for pid in pids}


def _abandon(world: World) -> None:
    """End everything that is still running."""
    loop = world.loop
    loop.after_turn = lambda: None
    loop.set_exception_handler(lambda _loop, _context: None)
    loop.fault = None
    for supervisor in world.started:
        supervisor.kill()
    while left := asyncio.all_tasks(loop):
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.wait(left, timeout=1))
