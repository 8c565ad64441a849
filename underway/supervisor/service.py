"""Wires the loops of a supervisor to each other, and runs them until it is to stop."""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Coroutine
from logging import getLogger
from typing import Any

from underway.postgres.listener import Wakeup
from underway.postgres.reconnecting import ReconnectingConnection
from underway.postgres.supervisor_store import Store
from underway.supervisor.drain import Drain
from underway.supervisor.logs.summary import summarise
from underway.supervisor.loops.backends import Backends
from underway.supervisor.loops.cancel import Cancels
from underway.supervisor.loops.claim import Claims
from underway.supervisor.loops.commit import Commits
from underway.supervisor.loops.control import Requests
from underway.supervisor.loops.errors import FAILED
from underway.supervisor.loops.heartbeat import Heartbeat
from underway.supervisor.loops.pause import Pauses
from underway.supervisor.loops.promote import Promoter
from underway.supervisor.loops.reap import Reaper
from underway.supervisor.loops.renew import Leases
from underway.supervisor.loops.retention import Retention
from underway.supervisor.loops.schedule import Schedules
from underway.supervisor.shutdown import StopRequest
from underway.supervisor.tasks.dispatch import Dispatch
from underway.supervisor.tasks.results import ResultHandler
from underway.supervisor.tasks.task import Task
from underway.supervisor.workers.kernel_kills import KernelKills
from underway.supervisor.workers.limits import Limits
from underway.supervisor.workers.pool import WorkerPool

log = getLogger("underway.supervisor")

_TICK_SECONDS = 0.2
_SHORTEST_TICK_SECONDS = 0.01
_PATIENT_TICK_SECONDS = 0.05
_HOUSEKEEPING_SECONDS = 1.0
_CANCEL_SECONDS = 0.5


class Service:
    """A supervisor at work: a crew on one side, a database on the other."""

    def __init__(
        self,
        app: str,
        crew: WorkerPool,
        store: Store,
        work: ReconnectingConnection,
        leases: ReconnectingConnection,
        stop: StopRequest,
    ) -> None:
        self._crew = crew
        self._store = store
        self._leases_session = leases
        self._stop = stop
        self._held: dict[int, Task] = {}
        self._looked_in_vain = asyncio.Event()
        self._begun = asyncio.Event()
        rng = random.Random()  # noqa: S311 - spreads retries
        wakeup = Wakeup(leases, self._on_notify)
        self._dispatch = Dispatch(crew)
        self._limits = Limits()
        self._kernel_kills = KernelKills()
        self._commits = Commits(
            store,
            self._dispatch,
            self._held,
            on_continue=self._on_continue,
            on_room=self._on_room,
            on_stay=self._on_stay,
            on_unknown=lambda: self._claims.expect_unknown(),
            rng=rng,
        )
        self._backends = Backends(store)
        self._endings = ResultHandler(
            self._dispatch,
            self._commits,
            self._backends,
            self._held,
            self._kernel_kills,
            rng=rng,
            on_settled=self._hand_out,
            stopping=stop.draining.is_set,
        )
        self._claims = Claims(
            store,
            crew,
            self._dispatch,
            self._held,
            full=self._commits.full,
            listening=lambda: wakeup.listening,
            on_empty=self._looked_in_vain.set,
            on_too_large=self._endings.too_large,
        )
        self._promoter = Promoter(store, on_promoted=self._claims.wake)
        self._leases = Leases(
            store,
            wakeup,
            self._held,
            shortest_lease=self._shortest_lease,
            on_lost=self._on_lost,
        )
        self._reaper = Reaper(
            store, work, self._backends, shortest_lease=self._shortest_lease, on_reaped=lambda: self._promoter.hint(0)
        )
        self._schedules = Schedules(work, crew, on_enqueued=self._on_continue)
        self._cancels = Cancels(store, self._dispatch, self._endings, self._held)
        self._pauses = Pauses(store, self._dispatch, self._endings)
        self._requests = Requests(store, self._cancels, self._pauses, stop, listening=lambda: wakeup.listening)
        self._retention = Retention(store)
        self._labels = Heartbeat(store, work, app, crew, on_label=self._claims.forget_idle)
        crew.listener = self._endings

    async def serve(self, *, grace: float, until_idle: bool, on_serving: Callable[[], None] = lambda: None) -> bool:
        """Serve until told to stop; whether the stop was clean. `on_serving` is called when others can enqueue."""
        claiming = _start(self._claim(on_serving))
        loops = [
            _start(loop)
            for loop in (
                self._labels.run(),
                self._leases.run(),
                self._commits.run(),
                self._backends.run(),
                self._reaper.run(),
                self._promoter.run(),
                self._schedules.run(),
                self._requests.run(),
                self._retention.run(),
                self._watch(),
                summarise(self._commits.outcomes, self._endings.ends, self._commits.seconds, self._running),
            )
        ]
        if until_idle:
            loops.append(_start(self._stop_when_idle()))
        told = _start(self._stop.draining.wait())
        try:
            while not told.done():
                done, _ = await asyncio.wait([told, claiming, *loops], return_when=asyncio.FIRST_COMPLETED)
                for loop in done:
                    loop.result()  # a loop that ended did so by a bug; it ends us, loudly
                    if loop in loops:
                        loops.remove(loop)
            await self._claims.stop(claiming)
            drain = Drain(
                self._crew,
                self._dispatch,
                self._endings,
                self._commits,
                self._backends,
                self._store,
                self._held,
                self._stop,
            )
            return await drain.run(grace)
        finally:
            await _end([told, claiming, *loops])

    async def _claim(self, on_serving: Callable[[], None]) -> None:
        """Not before Postgres knows the app: the end of a run looks up the label for dead letters of its queue."""
        await self._labels.known.wait()
        on_serving()
        await self._claims.run()

    def _hand_out(self) -> None:
        """After a batch of messages: give free workers what there is, and ask for more."""
        if self._held:
            self._begun.set()
        if not self._dispatch.closed:
            self._dispatch.pump()
            if self._dispatch.demand():
                self._claims.wake()
        if self._dispatch.idle():
            self._commits.hurry()

    def _on_lost(self, task: Task) -> None:
        self._endings.lost(task)
        self._claims.expect_unknown()  # a standby that was behind may have it in our name all the same

    def _on_notify(self, payload: str) -> None:
        if not payload and self._leases_session.opened > 1:  # perhaps of such a standby
            self._claims.expect_unknown()
        self._claims.wake()
        self._promoter.hint(0)
        self._requests.hear(payload)

    def _on_continue(self, delay: float) -> None:
        if delay > 0:
            self._promoter.hint(delay)
        else:
            self._claims.wake()

    def _on_room(self) -> None:
        self._dispatch.pump()
        self._claims.resume()

    def _on_stay(self, tasks: list[Task]) -> None:
        if self._dispatch.closed:
            for task in tasks:
                self._endings.release(task)
        else:
            self._dispatch.add_first(tasks)
            self._dispatch.pump()

    def _shortest_lease(self) -> float:
        """Of all workers: while the app is reloaded, an old one keeps to the leases of the old code."""
        steps = (step for worker in self._crew.active for step in worker.lanes.values())
        return min((step.policy.lease.total_seconds() for step in steps), default=60.0)

    def _running(self) -> int:
        return sum(worker.current is not None for worker in self._crew.active)

    async def _watch(self) -> None:
        """Limits and patience, while something is held."""
        housekeeping_at = 0.0
        while True:
            await self._until_next_look()
            now = time.monotonic()
            if now >= housekeeping_at:
                housekeeping_at = now + _HOUSEKEEPING_SECONDS
                self._crew.keep_house()
                self._kernel_kills.look(now)
            self._crew.look(now)
            if self._held:
                self._limits.enforce(self._crew.active, now)
                self._crew.vouch()
                self._cancels.enforce(now)
                self._pauses.enforce()
                self._dispatch.take_back_waiting(now)
                for task in self._dispatch.overdue(now):
                    self._endings.release(task)
                self._hand_out()

    async def _until_next_look(self) -> None:
        """While nothing is held, not before a worker has begun something: its limits count from then on."""
        if not self._held:
            self._crew.stand_down()
            self._begun.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HOUSEKEEPING_SECONDS):
                    await self._begun.wait()
        await asyncio.sleep(self._tick())

    def _tick(self) -> float:
        """Each costs a tenth of a millisecond: seldom enough that it does not show beside long steps."""
        if any(len(worker.tasks) > 1 for worker in self._crew.active):
            return _PATIENT_TICK_SECONDS
        to_limit = self._limits.due_in(self._crew.active, time.monotonic())
        return min(_TICK_SECONDS, max(to_limit, _SHORTEST_TICK_SECONDS))

    async def _stop_when_idle(self) -> None:
        while True:
            await self._looked_in_vain.wait()
            self._looked_in_vain.clear()
            if self._held or self._commits.uncommitted():
                continue
            assert self._crew.manifest is not None
            with contextlib.suppress(*FAILED):
                if not await self._store.has_work([job.name for job in self._crew.manifest.jobs]):
                    log.info("nothing left to do")
                    self._stop.drain()
                    return


def _start(loop: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
    return asyncio.get_running_loop().create_task(loop)


async def _end(loops: "list[asyncio.Task[Any]]") -> None:
    """Cancel them until they have ended.

    Once is not enough: up to Python 3.11 wait_for, which psycopg uses too, swallows a cancellation that comes together
    with what was waited for. (A supervisor that was told to stop then never did.)
    """
    while living := [loop for loop in loops if not loop.done()]:
        for loop in living:
            loop.cancel()
        await asyncio.wait(living, timeout=_CANCEL_SECONDS)
    await asyncio.gather(*loops, return_exceptions=True)
