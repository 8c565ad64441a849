"""A supervisor made of the real parts, and the invariants that hold between any two turns of the loop."""

import contextlib
import itertools
from typing import TYPE_CHECKING, Any
from uuid import UUID

from simulation.ledger import Broken
from simulation.session import ReconnectingConnection
from simulation.store import FakeStore
from simulation.worker import FakeWorker
from underway.supervisor.service import Service
from underway.supervisor.shutdown import StopRequest
from underway.supervisor.workers.boot import BootError
from underway.supervisor.workers.pool import WorkerPool
from underway.supervisor.workers.recycle import RecycleLimits
from underway.wire import messages

if TYPE_CHECKING:
    from simulation.world import World

GRACE = 3.0
# The bounds of Drain: to clean up, to die, to write. ClaimLoop.stop may wait two seconds for a claim before the drain
# begins; and the delay of a lost statement.
DRAIN_SECONDS = GRACE + 5 + 5 + 12 + 2 + 1
# Small, so that these limits are reached.
MOST_UNCOMMITTED = 12
MOST_CLAIMED = 20
MOST_PREFETCHED = 6
MOST_WORKERS = 3
# Between the first and the last TERM that are sent together.
LATE_SECONDS = 0.1
_pids = itertools.count(10_000)


class Supervisor:
    def __init__(self, world: "World", number: int) -> None:
        self.world = world
        self.number = number
        self.owner = UUID(int=number)
        self.loop = world.loop
        self.work = ReconnectingConnection(world.database, world.schedules)
        self.leases = ReconnectingConnection(world.database, world.schedules)
        self.store = FakeStore(world.database, self.work, self.leases, self.owner)
        self.stop = StopRequest()
        self.code = world.loop.rng.choice(["even", "odd"])
        marks = RecycleLimits(tasks=world.loop.rng.choice([None, 5, 60]))
        self.pool = WorkerPool("simulated", world.loop.rng.randint(1, MOST_WORKERS), f"supervisor{number}", marks)
        self.pool.__dict__["simulated"] = self
        self.service: Service | None = None
        self.life = world.loop.create_task(self._live())
        self._stopping_since: float | None = None
        self._killed = False

    async def _live(self) -> None:
        try:
            self.pool.start()
            with contextlib.suppress(BootError):
                await self.pool.first_manifest
                self.pool.welcome(messages.Welcome("owner", "host", "database"))
                store: Any = self.store
                work: Any = self.work
                leases: Any = self.leases
                self.service = service = Service("simulated", self.pool, store, work, leases, self.stop)
                self.store.holds = lambda: service._held.tokens()
                self._check_end(clean=await service.serve(grace=GRACE, until_idle=False))
        finally:
            if not self._killed:
                await self.pool.kill_all()

    def start_worker(self, slot: int, listener: Any, generation: int, usage: Any) -> FakeWorker:
        code = self.world.code[self.code]
        return FakeWorker(self.world.executions, self.owner, code, next(_pids), slot, listener, generation, usage)

    # Faults

    def reload(self, code: str) -> None:
        self.code = code
        self.pool.reload()

    def ask_to_stop(self) -> None:
        self.loop.note("stop of supervisor", self.number)
        self.stop.drain()

    def terminate_all(self) -> None:
        """Send TERM to all processes of a unit, in any order: the supervisor, and the workers, which die of it."""
        rng, loop = self.loop.rng, self.loop
        loop.note("TERM to all of supervisor", self.number)
        # As in asyncio, a signal is handled one turn after it was seen.
        loop.happen(rng.uniform(0, LATE_SECONDS), lambda: loop.call_soon(self.ask_to_stop))
        for worker in self.pool.workers:
            assert isinstance(worker, FakeWorker)
            loop.happen(rng.uniform(0, LATE_SECONDS), worker.terminated_with_all)

    def kill(self) -> None:
        """Kill the supervisor; its guardian kills the workers."""
        self.loop.note("kill of supervisor", self.number)
        self._killed = True
        self.pool.stop_booting()
        self.life.cancel()
        for worker in self.pool.workers:
            assert isinstance(worker, FakeWorker)
            worker.vanish()
        self.service = None

    # Invariants

    def check(self) -> None:
        """Every held task is in exactly one place: it waits, is with a worker, was with a dead worker whose verdict is
        open, or has ended and is on its way to Postgres.

        This runs in every turn, so it is written for speed.
        """
        if self.service is None or self.life.done():
            return
        held, line = self.service._held, self.service._dispatch
        places = [task.token for task in line.ready]
        places += [task.token for task in line.suspects]
        waiting = len(places)
        for worker in self.pool.roster.active:  # other workers have no tasks
            places += worker.tasks
        places += self.service._results.unjudged
        here = set(places)
        if len(places) != len(here):
            raise Broken(f"in two places: {sorted(token for token in here if places.count(token) > 1)}")
        if lost := [token for token in places[:waiting] if token not in held]:
            raise Broken(f"{lost} wait here, but are not held")
        if wrong := [task.token for task in held if task.ended is (task.token in here)]:
            raise Broken(f"{wrong} have ended and are still handed out, or are nowhere")
        if sum([task.crashes > 0 for task in held]) > 1:
            raise Broken("several suspects are held at once")
        uncommitted = self.service._commits.uncommitted()
        if uncommitted > MOST_UNCOMMITTED + MOST_CLAIMED + MOST_WORKERS * (MOST_PREFETCHED + 1):
            raise Broken(f"{uncommitted} have ended and are not committed")
        if self.stop.draining.is_set():
            self._check_drain()

    def _check_drain(self) -> None:
        if self._stopping_since is None:
            self._stopping_since = self.loop.time()
        if self.loop.time() - self._stopping_since > DRAIN_SECONDS + self.world.stalled:
            raise Broken(f"supervisor {self.number} has not stopped after {DRAIN_SECONDS} s")

    def _check_end(self, *, clean: bool) -> None:
        assert self.service is not None
        if clean and (left := [task.token for task in self.service._held]):
            raise Broken(f"a clean stop, but {left} are neither committed nor released")
