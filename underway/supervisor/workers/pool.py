"""The workers of one supervisor: starts them, keeps one spare, replaces those that die, and stops them.

A worker takes its place only after it has booted, as the spare. So the death of a worker costs no boot time.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Iterator
from logging import getLogger

from underway.definition.manifest import Lane, Manifest
from underway.supervisor.logs.output_quota import OUTPUT_LIMIT
from underway.supervisor.workers.boot import BootError, WorkerBoots
from underway.supervisor.workers.descendants import Descendants
from underway.supervisor.workers.factory import WorkerFactory
from underway.supervisor.workers.guardian import GuardianProcess
from underway.supervisor.workers.process import WorkerListener, WorkerProcess
from underway.supervisor.workers.recycle import NO_LIMITS, MemorySampler, RecycleLimits
from underway.supervisor.workers.replacement import Replacement
from underway.supervisor.workers.roster import Roster
from underway.wire import frames, messages

log = getLogger("underway.supervisor")

# A worker that dies idle, before its first task and earlier than this, counts as one that failed to boot.
_PROVEN_SECONDS = 30.0
_BOOT_MESSAGES = frozenset((messages.Hello, messages.BootFailed))


class WorkerPool:
    """Keeps `size` workers active and one more booted and idle.

    `manifest` is that of the newest worker. `first_manifest` raises BootError if the first worker does not
    boot. `listener` receives what workers report about tasks.
    """

    def __init__(
        self,
        app: str,
        size: int,
        supervisor_id: str,
        recycle_limits: RecycleLimits = NO_LIMITS,
        output_limit: int = OUTPUT_LIMIT,
    ) -> None:
        self.listener: WorkerListener | None = None
        self.manifest: Manifest | None = None
        self.first_manifest: asyncio.Future[Manifest] = asyncio.get_running_loop().create_future()
        self.roster = Roster(size)
        self.descendants = Descendants(f"{supervisor_id}/", lambda: {worker.pid for worker in self.workers})
        rng = random.Random()  # noqa: S311 - spreads boots and replacements
        self._factory = WorkerFactory(
            app, supervisor_id, self.descendants, recycle_limits, rng, pool_size=size, output_limit=output_limit
        )
        self._boots = WorkerBoots(self._start_worker, rng)
        self._replacement = Replacement(self.roster, self._boots, MemorySampler(recycle_limits))
        self._welcome: messages.Welcome | None = None
        self._stopping = False

    @property
    def workers(self) -> Iterator[WorkerProcess]:
        """All workers that are alive, booting and retired ones included."""
        yield from self.roster
        yield from self._boots

    @property
    def guardian(self) -> GuardianProcess:
        return self.descendants.guardian

    @property
    def trouble(self) -> str:
        """Why workers do not boot; empty if they do."""
        return self._boots.trouble

    def start(self) -> None:
        self._fill()

    def welcome(self, message: messages.Welcome) -> None:
        """What every worker is told before its first task."""
        self._welcome = message
        for worker in self.workers:
            if worker.ready:
                worker.send(message)

    def reload(self) -> None:
        """Replace all workers, one after the other, by ones that import the app anew. During a reload, start over."""
        self.roster.generation += 1
        self._boots.end()
        self._replacement.reload()
        self._fill()

    def check(self, now: float) -> None:
        """At every tick: replace workers that have reached a limit."""
        self._replacement.check(now)
        self._replace_idle()

    def unused(self, idle: WorkerProcess, lane: Lane) -> WorkerProcess | None:
        """This worker, or the spare in its place if it has run anything; None while there is no such spare.

        What a step leaves in its worker, a timer or a corrupt heap, may end the worker during another step. (Three such
        deaths, and an innocent run was quarantined.)
        """
        spare = self.roster.fresh_spare
        if spare is None:
            return idle if not idle.usage.tasks or self.trouble else None
        if not idle.usage.tasks or lane not in spare.lanes:
            return idle
        self.roster.swap(idle, spare)
        self._fill()
        return spare

    def _replace_idle(self) -> None:
        if not self._stopping and self._replacement.replace_idle():
            self._fill()

    # What workers report

    def received(self, worker: WorkerProcess, message: messages.Message) -> None:
        if type(message) in _BOOT_MESSAGES:
            self._receive_boot(worker, message)
        elif isinstance(message, messages.Tainted):
            if worker in self._boots:
                raise frames.BrokenFrame("Tainted of a worker that has not booted")
            self._replacement.taint(worker, message.reason)
        elif self.listener is not None:
            if isinstance(message, messages.Result):
                self._replacement.count(worker, message)
            self.listener.received(worker, message)

    def on_messages_processed(self) -> None:
        self._replace_idle()
        if self.listener is not None:
            self.listener.on_messages_processed()

    def died(self, worker: WorkerProcess) -> None:
        retired = worker in self.roster.retired
        if retired:
            self.roster.retired.remove(worker)
        elif worker in self._boots:
            self._boot_failed(worker)
        else:
            self._lose(worker)
        self._fill()
        if self.listener is not None and not retired:
            self.listener.died(worker)

    def _lose(self, worker: WorkerProcess) -> None:
        if worker is self.roster.spare:
            self.roster.spare = None
        else:
            self.roster.remove(worker)
            self._replacement.promote_spare()
        # If something that the app starts at import kills its workers, a successful boot does not end the back-off.
        in_vain = not worker.tasks and not worker.usage.tasks and worker.kill_reason is None
        if in_vain and time.monotonic() - worker.started_at < _PROVEN_SECONDS and not self._stopping:
            self._boots.failed(worker.slot, f"it died idle: {worker.exit_text}")
        else:
            self._boots.reset_backoff(worker.slot)

    # Booting

    def _fill(self) -> None:
        """Boot what is missing: a worker for each place without a usable one, and a spare, all with today's code."""
        while not self._stopping and self.roster.usable_count + self._coming_count() < self.roster.size + 1:
            taken = {worker.slot for worker in self.workers} | self._boots.pausing
            self._boots.begin(next(number for number in itertools.count(1) if number not in taken))

    def _coming_count(self) -> int:
        booting = sum(not self.roster.is_old(worker) for worker in self._boots)
        return booting + len(self._boots.pausing) + (self.roster.fresh_spare is not None)

    def _start_worker(self, slot: int) -> WorkerProcess:
        return self._factory.start(slot, self.roster.generation, self)

    def _receive_boot(self, worker: WorkerProcess, message: messages.Message) -> None:
        if worker not in self._boots:  # the app's code has written this message: the worker would have two places
            raise frames.BrokenFrame(f"{type(message).__name__} of a worker that has booted")
        if isinstance(message, messages.Hello):
            self._booted(worker, message)
        elif isinstance(message, messages.BootFailed):
            self._boots.record_boot_error(worker, message, aloud=self.manifest is not None)

    def _booted(self, worker: WorkerProcess, hello: messages.Hello) -> None:
        if self.roster.is_old(worker):
            return  # the reload has killed it
        try:
            worker.manifest = self.manifest = Manifest.from_json(hello.payload)
        except ValueError as error:
            raise frames.BrokenFrame(f"a Hello without manifest: {error}") from error
        worker.lanes = dict(worker.manifest.lanes())
        if self._welcome is not None:
            worker.send(self._welcome)
        self._boots.done(worker)
        if len(self.roster.active) < self.roster.size:
            self.roster.add(worker)
        else:
            self.roster.set_spare(worker)
        if not self.first_manifest.done():
            self.first_manifest.set_result(worker.manifest)

    def _boot_failed(self, worker: WorkerProcess) -> None:
        why = self._boots.died(worker)
        if self._stopping or self.roster.is_old(worker):
            return
        if not self.first_manifest.done():  # this ends the supervisor
            self.first_manifest.set_exception(BootError(why, terminated=worker.terminated))
            self.stop_booting()
            return
        self._boots.failed(worker.slot, why)
        if old := self.roster.old_count:
            log.error("not reloaded: %d of %d workers still run the old code", old, self.roster.size)

    # Stopping

    def stop_booting(self) -> None:
        """Replace no worker from now on."""
        self._stopping = True
        self._boots.stop()

    def retire_idle(self) -> None:
        """Ask all idle workers to exit."""
        for worker in [worker for worker in self.roster.active if not worker.tasks]:
            self.roster.retire(worker)
        self.roster.retire_spare()

    async def kill_all(self) -> None:
        """Nothing that we started outlives this."""
        self.stop_booting()
        for worker in list(self.workers):
            worker.kill()
        while any(True for _ in self.workers):
            await asyncio.sleep(0.002)
        await self.descendants.settle()
        self.descendants.dismiss()
