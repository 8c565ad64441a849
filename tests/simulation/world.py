"""Supervisors on one database: first with faults, then without, until all runs have ended by themselves."""

import asyncio
import itertools

from simulation.app import code
from simulation.clockwork import Clockwork
from simulation.database import Database
from simulation.executions import Executions
from simulation.faults import inject_fault
from simulation.ledger import Broken
from simulation.schedules import Schedules
from simulation.supervisor import Supervisor

SUPERVISORS = 2
# From the last fault until all runs have ended: leases expire, and suspects run one at a time.
SETTLING_SECONDS = 400.0


class World:
    settling_seconds = SETTLING_SECONDS

    def __init__(self, loop: Clockwork, turns: int) -> None:
        self.loop = loop
        self.code = code()
        self.database = Database(loop)
        self.schedules = Schedules(self.database)
        self.executions = Executions(self.database)
        self.stalled = 0.0  # the longest stall of this process
        self.supervisors: list[Supervisor] = []
        self.started: list[Supervisor] = []
        self._turns = turns
        self._numbers = itertools.count(1)

    async def play(self) -> None:
        self.loop.after_turn = self._check
        self.supervisors = [self._start() for _ in range(SUPERVISORS)]
        while self.loop.turns < self._turns:
            await asyncio.sleep(self.loop.rng.expovariate(20))
            self._replace_the_gone()
            inject_fault(self)
        await self._calm_down()
        self.database.ledger.audit(self.database.live)

    def _start(self) -> Supervisor:
        supervisor = Supervisor(self, next(self._numbers))
        self.started.append(supervisor)
        return supervisor

    def _replace_the_gone(self) -> None:
        for supervisor in self.supervisors:
            if supervisor.life.done() and not supervisor.life.cancelled():
                supervisor.life.result()
        self.supervisors = [self._start() if each.life.done() else each for each in self.supervisors]

    def _check(self) -> None:
        for supervisor in self.supervisors:
            supervisor.check()

    async def _calm_down(self) -> None:
        self.database.lossy, self.executions.calm = False, True
        settled_at = self.loop.time() + self.settling_seconds
        calm_since = self.schedules.now()
        while self.schedules.every or self.database.live:
            self._replace_the_gone()
            self._let_all_know_all_jobs()
            if self.schedules.have_passed(calm_since):
                self.schedules.unschedule()
            if self.loop.time() > settled_at:
                waiting = [one.name for one in self.schedules.every]
                raise Broken(f"schedules {waiting} or runs are stuck: {list(self.database.live.values())[:5]}")
            await asyncio.sleep(0.5)
        for supervisor in self.supervisors:
            supervisor.ask_to_stop()
        await asyncio.gather(*(supervisor.life for supervisor in self.supervisors))
        for supervisor in self.supervisors:
            if supervisor.service is not None and supervisor.service._held:
                raise Broken(f"supervisor {supervisor.number} has stopped with {list(supervisor.service._held)}")

    def _let_all_know_all_jobs(self) -> None:
        for supervisor in self.supervisors:
            if supervisor.code != "all" and not supervisor.stop.draining.is_set():
                supervisor.reload("all")
