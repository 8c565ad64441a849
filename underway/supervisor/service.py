"""Connects the loops of a supervisor to each other, and runs them until it is told to stop."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from underway.postgres.listener import Wakeup
from underway.postgres.reconnecting import ReconnectingConnection
from underway.postgres.supervisor_store import Store
from underway.supervisor.drain import Drain
from underway.supervisor.logs.summary import summarise
from underway.supervisor.loops.backends import BackendLoop
from underway.supervisor.loops.cancel import Cancellation
from underway.supervisor.loops.claim import ClaimLoop
from underway.supervisor.loops.commit import CommitLoop
from underway.supervisor.loops.control import ControlLoop
from underway.supervisor.loops.heartbeat import HeartbeatLoop
from underway.supervisor.loops.pause import PausedQueues
from underway.supervisor.loops.promote import PromoteLoop
from underway.supervisor.loops.reap import ReapLoop
from underway.supervisor.loops.renew import RenewLoop
from underway.supervisor.loops.retention import RetentionLoop
from underway.supervisor.loops.schedule import ScheduleLoop
from underway.supervisor.loops.until_idle import UntilIdleLoop
from underway.supervisor.loops.watch import WatchLoop
from underway.supervisor.shutdown import StopRequest
from underway.supervisor.signals import Signals
from underway.supervisor.tasks.dispatch import Dispatch
from underway.supervisor.tasks.held import HeldTasks
from underway.supervisor.tasks.results import ResultHandler
from underway.supervisor.workers.kernel_kills import KernelKills
from underway.supervisor.workers.pool import WorkerPool

_CANCEL_SECONDS = 0.5


class Service:
    """Connects a worker pool with the database, through the loops."""

    def __init__(
        self,
        app: str,
        pool: WorkerPool,
        store: Store,
        work: ReconnectingConnection,
        leases: ReconnectingConnection,
        stop: StopRequest,
    ) -> None:
        self._pool = pool
        self._store = store
        self._leases = leases
        self._stop = stop
        self._held = held = HeldTasks()
        self._signals = signals = Signals()
        rng = random.Random()  # noqa: S311 - spreads retries
        wakeup = Wakeup(leases, signals.notified)
        kills = KernelKills()
        self._dispatch = dispatch = Dispatch(pool, held)
        self._commits = CommitLoop(store, dispatch, held, signals, rng=rng)
        self._backends = BackendLoop(store)
        self._results = results = ResultHandler(
            dispatch, self._commits, self._backends, held, kills, stop, signals, rng=rng
        )
        cancellation = Cancellation(store, dispatch, results, held)
        paused = PausedQueues(store, dispatch, results)
        self._claims = ClaimLoop(store, pool, dispatch, held, self._commits, results, wakeup, signals)
        self._promoter = PromoteLoop(store, signals)
        self._control = ControlLoop(store, cancellation, paused, stop, wakeup)
        self._heartbeat = HeartbeatLoop(store, work, app, pool, signals)
        self._renewals = RenewLoop(store, wakeup, held, pool, signals)
        self._reaper = ReapLoop(store, work, self._backends, pool, signals)
        self._schedules = ScheduleLoop(work, pool, signals)
        self._retention = RetentionLoop(store)
        self._watch = WatchLoop(pool, held, dispatch, results, cancellation, paused, kills, signals)
        self._until_idle = UntilIdleLoop(store, pool, held, self._commits, stop)
        pool.listener = results
        self._connect()

    def _connect(self) -> None:
        """Connect the signals to those that react to them."""
        signals, claims = self._signals, self._claims
        signals.run_pending.connect(claims.wake)
        signals.run_due_in.connect(self._promoter.wake)
        signals.commits_have_room.connect(self._dispatch.pump, claims.commits_have_room)
        signals.next_steps.connect(self._results.place)
        signals.unknown_runs.connect(claims.expect_unknown)
        # A standby that was behind may show the lost run in our name all the same.
        signals.task_lost.connect(self._results.lose, lambda _: claims.expect_unknown())
        signals.messages_processed.connect(self._watch.messages_processed, self._hand_out)
        signals.nothing_claimed.connect(self._until_idle.nothing_claimed)
        signals.registered.connect(claims.forget_idle)
        signals.notified.connect(self._notified, self._control.notified)

    async def serve(self, *, grace: float, until_idle: bool, on_serving: Callable[[], None] = lambda: None) -> bool:
        """Serve until told to stop. Returns whether the stop was clean. Calls `on_serving` when others can enqueue."""
        claiming = _start(self._claim(on_serving))
        loops = [_start(loop) for loop in self._loops(until_idle)]
        stopping = _start(self._stop.draining.wait())
        try:
            while not stopping.done():
                done, _ = await asyncio.wait([stopping, claiming, *loops], return_when=asyncio.FIRST_COMPLETED)
                for loop in done:
                    loop.result()  # a loop ends only by a bug: let it end the supervisor
            await self._claims.stop(claiming)
            return await Drain(
                self._pool, self._dispatch, self._results, self._commits, self._backends, self._store, self._held,
                self._stop,
            ).run(grace)  # fmt: skip
        finally:
            await _end([stopping, claiming, *loops])

    def _loops(self, until_idle: bool) -> list[Coroutine[Any, Any, None]]:
        loops = [
            self._heartbeat, self._renewals, self._commits, self._backends, self._reaper, self._promoter,
            self._schedules, self._control, self._retention, self._watch,
        ]  # fmt: skip
        if until_idle:
            loops.append(self._until_idle)
        summary = summarise(self._commits.outcomes, self._results.ends, self._commits.seconds, self._running)
        return [*(loop.run() for loop in loops), summary]

    async def _claim(self, on_serving: Callable[[], None]) -> None:
        """Claim only when Postgres knows the app: the end of a run looks up its queue's dead-letter label."""
        await self._heartbeat.registered.wait()
        on_serving()
        await self._claims.run()

    def _hand_out(self) -> None:
        """After a batch of messages: give free workers the tasks that wait, and ask for more."""
        if not self._dispatch.closed:
            self._dispatch.pump()
            if self._dispatch.demand():
                self._claims.wake()
        if self._dispatch.idle():
            self._commits.hurry()

    def _notified(self, payload: str) -> None:
        if not payload and self._leases.opened > 1:  # perhaps of a standby that was promoted
            self._claims.expect_unknown()
        self._claims.wake()
        self._promoter.wake()

    def _running(self) -> int:
        return sum(worker.current is not None for worker in self._pool.roster.active)


def _start(loop: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
    return asyncio.get_running_loop().create_task(loop)


async def _end(loops: "list[asyncio.Task[Any]]") -> None:
    """Cancel the loops until they have ended.

    Once is not enough: up to Python 3.11, wait_for (which psycopg uses too) swallows a cancellation that arrives
    together with the awaited result. (A supervisor that was told to stop then never did.)
    """
    while living := [loop for loop in loops if not loop.done()]:
        for loop in living:
            loop.cancel()
        await asyncio.wait(living, timeout=_CANCEL_SECONDS)
    await asyncio.gather(*loops, return_exceptions=True)
