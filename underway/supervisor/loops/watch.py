"""Enforces limits, cancellations and pauses while tasks are held, and does the housekeeping of the worker pool."""

import time

from underway.supervisor.loops.cancel import Cancellation
from underway.supervisor.loops.loop import Loop
from underway.supervisor.loops.pause import PausedQueues
from underway.supervisor.signals import Signals
from underway.supervisor.tasks.dispatch import Dispatch
from underway.supervisor.tasks.held import HeldTasks
from underway.supervisor.tasks.results import ResultHandler
from underway.supervisor.workers.kernel_kills import KernelKills
from underway.supervisor.workers.limits import Limits
from underway.supervisor.workers.pool import WorkerPool

# A tick costs a tenth of a millisecond: seldom enough to be invisible beside long steps.
_TICK_SECONDS = 0.2
_SHORTEST_TICK_SECONDS = 0.01
_PIPELINED_TICK_SECONDS = 0.05
_HOUSEKEEPING_SECONDS = 1.0


class WatchLoop(Loop):
    """Asks nothing of the database."""

    def __init__(
        self,
        pool: WorkerPool,
        held: HeldTasks,
        dispatch: Dispatch,
        results: ResultHandler,
        cancellation: Cancellation,
        paused: PausedQueues,
        kernel_kills: KernelKills,
        signals: Signals,
    ) -> None:
        super().__init__("watching the workers")
        self._pool = pool
        self._held = held
        self._dispatch = dispatch
        self._results = results
        self._cancellation = cancellation
        self._paused = paused
        self._kernel_kills = kernel_kills
        self._signals = signals
        self._limits = Limits()
        self._housekeeping_at = 0.0
        self._idle = False

    async def turn(self) -> float:
        now = time.monotonic()
        if now >= self._housekeeping_at:
            self._housekeeping_at = now + _HOUSEKEEPING_SECONDS
            self._pool.descendants.tend()
            self._kernel_kills.poll(now)
        self._pool.check(now)
        if self._held:
            self._enforce(now)
        if self._held:
            return self._tick()
        self._pool.guardian.stand_down()
        self._idle = True
        return _HOUSEKEEPING_SECONDS

    def messages_processed(self) -> None:
        """A worker may have started a task: its limits count from now on."""
        if self._idle and self._held:
            self._idle = False
            self.wake(self._tick())

    def _enforce(self, now: float) -> None:
        self._limits.enforce(self._pool.roster.active, now)
        self._pool.guardian.expect_word_by(self._pool.roster.earliest_lease_end())
        self._cancellation.enforce(now)
        self._paused.enforce()
        self._dispatch.take_back_waiting(now)
        for task in self._dispatch.overdue(now):
            self._results.release(task)
        self._signals.messages_processed()

    def _tick(self) -> float:
        if any(len(worker.tasks) > 1 for worker in self._pool.roster.active):
            return _PIPELINED_TICK_SECONDS
        to_limit = self._limits.due_in(self._pool.roster.active, time.monotonic())
        return min(_TICK_SECONDS, max(to_limit, _SHORTEST_TICK_SECONDS))
