"""Supervisors made of the real parts, on a fake database with fake workers; havoc; and what must hold all the time."""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch
from uuid import UUID

from simulation.clockwork import Clockwork, made_up_time
from simulation.database import Broken, Database, FakeStore, Session
from simulation.workers import CHAIN, CODE, FIRST_STEPS, LEASE, FakeWorker, Whereabouts
from underway import wire
from underway.supervisor import commits, crew, dispatch, limits, service
from underway.supervisor.booting import BootError
from underway.supervisor.crew import Crew
from underway.supervisor.recycling import Marks
from underway.supervisor.service import Service
from underway.supervisor.shutdown import StopRequest

GRACE = 3.0
# Drain's own bounds: to clean up, to die, to write; and what comes with a stall of the process and a lost statement.
DRAIN_SECONDS = GRACE + 5 + 5 + 12
SUPERVISORS = 2
MOST_LIVE = 80
# Small, so that they are reached.
MOST_UNCOMMITTED = 12
MOST_CLAIMED = 20
MOST_AHEAD = 6
MOST_WORKERS = 3
# From the end of the havoc until all runs have ended: leases lapse, suspects wait, one at a time.
SETTLING_SECONDS = 400.0


class Supervisor:
    """One start of a supervisor."""

    def __init__(self, world: "World", number: int) -> None:
        self.world = world
        self.number = number
        self.loop = world.loop
        self.work, self.leases = Session(world.database), Session(world.database)
        self.store = FakeStore(world.database, self.work, self.leases, UUID(int=number))
        self.stop = StopRequest()
        self.code = world.loop.rng.choice(["even", "odd"])
        marks = Marks(tasks=world.loop.rng.choice([None, 5, 60]))
        self.crew = Crew("simulated", world.loop.rng.randint(1, MOST_WORKERS), f"supervisor{number}", marks)
        self.crew.__dict__["simulated"] = self
        self.service: Service | None = None
        self.stopping_since: float | None = None
        self.killed = False
        self.life = world.loop.create_task(self._live())

    def start_worker(self, slot: int, overseer: Any, generation: int, wear: Any) -> FakeWorker:
        return FakeWorker(self.world.where, CODE[self.code], slot, overseer, generation, wear)

    async def _live(self) -> None:
        try:
            self.crew.start()
            with contextlib.suppress(BootError):
                await self.crew.first_manifest
                self.crew.welcome(wire.Welcome("owner", "host", "database"))
                store: Any = self.store
                work: Any = self.work
                leases: Any = self.leases
                self.service = Service("simulated", self.crew, store, work, leases, self.stop)
                self.store.holds = lambda: self.service._held  # type: ignore[union-attr]
                clean = await self.service.serve(grace=GRACE, until_idle=False)
                self._check_end(clean)
        finally:
            if not self.killed:
                await self.crew.kill_all()

    def ask_to_stop(self) -> None:
        self.loop.note("stop of supervisor", self.number)
        self.stop.drain()

    def kill(self) -> None:
        """SIGKILL, and its keeper kills the workers."""
        self.loop.note("kill of supervisor", self.number)
        self.killed = True
        self.crew.stop_booting()
        self.life.cancel()
        for worker in self.crew.workers:
            assert isinstance(worker, FakeWorker)
            worker.vanish()
        self.service = None

    def reload(self, code: str) -> None:
        self.code = code
        self.crew.reload()

    def _check_end(self, clean: bool) -> None:
        assert self.service is not None
        if clean and (left := [task.token for task in self.service._held.values()]):
            raise Broken(f"a clean stop, but {left} are neither committed nor released")

    def check(self) -> None:
        """What holds between any two turns of the loop."""
        if self.service is None or self.life.done():
            return
        held, line = self.service._held, self.service._dispatch
        waiting = [task.token for task in (*line.ready, *line.suspects)]
        handed = [task for worker in self.crew.workers for task in worker.tasks.values()]
        places = waiting + [task.token for task in handed]
        if len(places) != len(set(places)):
            raise Broken(f"in two places: {sorted(token for token in set(places) if places.count(token) > 1)}")
        here = set(places)
        suspects = 0
        for token, task in held.items():
            suspects += task.suspect
            if task.ended == (token in here):
                raise Broken(f"{token}: " + ("has ended, and is still handed out" if task.ended else "is nowhere"))
        if suspects > 1:
            raise Broken(f"{suspects} suspects are held at once")
        if lost := set(waiting) - held.keys():
            raise Broken(f"{lost} wait here, but are not held")
        uncommitted = self.service._commits.uncommitted()
        if uncommitted > MOST_UNCOMMITTED + MOST_CLAIMED + MOST_WORKERS * (MOST_AHEAD + 1):
            raise Broken(f"{uncommitted} have ended and are not committed")
        self._check_drain()

    def _check_drain(self) -> None:
        if not self.stop.draining.is_set():
            return
        if self.stopping_since is None:
            self.stopping_since = self.loop.time()
        # Claims.stop may wait for a claim for two seconds before the drain begins.
        if self.loop.time() - self.stopping_since > DRAIN_SECONDS + 2 + 1 + self.world.stalled:
            raise Broken(f"supervisor {self.number} has not stopped after {DRAIN_SECONDS} s")


class World:
    def __init__(self, loop: Clockwork, turns: int) -> None:
        self.loop = loop
        self.turns = turns
        self.database = Database(loop)
        self.where = Whereabouts(self.database)
        self.stalled = 0.0
        self.enqueued = 0
        self._numbers = itertools.count(1)
        self.supervisors: list[Supervisor] = []
        self.started: list[Supervisor] = []

    async def play(self) -> None:
        self.loop.after_turn = self._check
        self.supervisors = [self._start() for _ in range(SUPERVISORS)]
        while self.loop.turns < self.turns:
            await asyncio.sleep(self.loop.rng.expovariate(20))
            self._replace_the_gone()
            self._havoc()
        await self._calm_down()
        self._audit()

    def _start(self) -> Supervisor:
        supervisor = Supervisor(self, next(self._numbers))
        self.started.append(supervisor)
        return supervisor

    def _replace_the_gone(self) -> None:
        for supervisor in self.supervisors:
            if supervisor.life.done() and not supervisor.life.cancelled():
                supervisor.life.result()
        self.supervisors = [self._start() if each.life.done() else each for each in self.supervisors]

    def _havoc(self) -> None:
        rng, database = self.loop.rng, self.database
        someone = rng.choice(self.supervisors)
        live = list(database.live)
        dice = rng.random()
        if dice < 0.5:
            if len(live) < MOST_LIVE:
                job = rng.choice(list(FIRST_STEPS))
                database.enqueue(job, FIRST_STEPS[job], rng.choice([1, 5, 30]))
        elif dice < 0.6 and live:
            database.cancel(rng.choice(live))
        elif dice < 0.7 and live:
            database.live[rng.choice(live)].locked_until = self.loop.time() + rng.choice([0.01, 0.3, 2])
        elif dice < 0.72:
            rng.choice([someone.work, someone.leases]).cut(rng.choice([0.1, 1, 2 * LEASE]))
        elif dice < 0.74:
            seconds = rng.choice([1, LEASE, 3 * LEASE])
            someone.work.cut(seconds)
            someone.leases.cut(seconds)
        elif dice < 0.745:
            database.away_until = self.loop.time() + rng.choice([0.5, 2 * LEASE])
        elif dice < 0.76:
            someone.ask_to_stop()
            if rng.random() < 0.3:
                self.loop.call_later(rng.uniform(0, GRACE), someone.stop.now.set)
        elif dice < 0.77:
            someone.kill()
        elif dice < 0.78:
            someone.reload(rng.choice(["even", "odd"]))
        elif dice < 0.79:
            seconds = rng.choice([0.05, 0.5, 1.5 * LEASE])
            self.stalled = max(self.stalled, seconds)
            self.loop.note("stall", seconds)
            self.loop.stall(seconds)
            self.where.last_stall = self.loop.time() + seconds
        elif dice < 0.8 and someone.crew.active:
            worker: Any = rng.choice(someone.crew.active)
            worker._die(-9, 0.001)

    async def _calm_down(self) -> None:
        """No more havoc: everything must come to its end by itself, and then a stop be clean."""
        self.database.lossy, self.where.calm = False, True
        until = self.loop.time() + SETTLING_SECONDS
        while self.database.live:
            self._replace_the_gone()
            for supervisor in self.supervisors:
                if supervisor.code != "all" and not supervisor.stop.draining.is_set():
                    supervisor.reload("all")
            if self.loop.time() > until:
                raise Broken(f"still live: {list(self.database.live.values())[:5]}")
            await asyncio.sleep(0.5)
        for supervisor in self.supervisors:
            supervisor.ask_to_stop()
        await asyncio.gather(*(supervisor.life for supervisor in self.supervisors))
        for supervisor in self.supervisors:
            if supervisor.service is not None and supervisor.service._held:
                raise Broken(f"supervisor {supervisor.number} has stopped with {supervisor.service._held}")

    def _audit(self) -> None:
        database = self.database
        for run, state in database.finished.items():
            if state == "succeeded" and tuple(database.succeeded[run]) not in (CHAIN, ("a",)):
                raise Broken(f"{run} has succeeded with the steps {database.succeeded[run]}")
        if lost := database.succeeded.keys() - database.finished.keys() - database.live.keys():
            raise Broken(f"lost: {sorted(lost)[:5]}")
        if wrong := [run for run in database.cancels if database.finished.get(run) != "cancelled"]:
            raise Broken(f"cancelled, but ended otherwise: {wrong[:5]}")

    def _check(self) -> None:
        for supervisor in self.supervisors:
            supervisor.check()


class NoDescendants:
    def __init__(self, *_: Any) -> None: ...
    def keep_keeper(self) -> None: ...
    def dismiss_keeper(self) -> None: ...
    def bury_adopted(self) -> None: ...
    def collect_adopted(self) -> None: ...


class NoKernelKills:
    def look(self, now: float) -> None: ...
    def explains_one(self) -> bool:
        return False


class Weights:
    """Now and then a worker is too large."""

    pause = 0.25

    def sample(self, pids: Any) -> dict[int, int]:
        loop: Any = asyncio.get_running_loop()
        return {pid: 2000 if loop.rng.random() < 0.02 else 1 for pid in pids}


def _fake_worker(_app: str, slot: int, _mark: str, overseer: Any, *, generation: int, wear: Any, **_: Any) -> Any:
    return overseer.simulated.start_worker(slot, overseer, generation, wear)


@contextmanager
def _without_a_system() -> Iterator[None]:
    logger = logging.getLogger("underway")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    with (
        patch.object(crew, "WorkerProcess", _fake_worker),
        patch.object(crew, "Descendants", NoDescendants),
        patch.object(limits, "Memory", Weights),
        patch.object(service, "KernelKills", NoKernelKills),
        patch.object(commits, "MOST_UNCOMMITTED", MOST_UNCOMMITTED),
        patch.object(dispatch, "MOST_CLAIMED", MOST_CLAIMED),
        patch.object(dispatch, "MOST_AHEAD", MOST_AHEAD),
    ):
        try:
            yield
        finally:
            logger.setLevel(level)


def simulate(seed: int, turns: int) -> World:
    """Play so many turns of the loop, and then until everything has come to its end. Raises what went wrong."""
    with made_up_time(seed) as loop, _without_a_system():
        asyncio.set_event_loop(loop)
        world = World(loop, turns)
        try:
            playing = loop.create_task(world.play())
            try:
                loop.run_until_complete(playing)
            except Exception as fault:
                story = loop.story()
                raise AssertionError(
                    f"{type(fault).__name__}: {fault}\n{story}\nseed {seed}, turn {loop.turns}: "
                    f"CHAOS_SEED={seed} python -m pytest -m chaos tests/test_simulation.py"
                ) from fault
            return world
        finally:
            _abandon(world)
            asyncio.set_event_loop(None)


def _abandon(world: World) -> None:
    """End whatever is in the middle of something when it is all over."""
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
