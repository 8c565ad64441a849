"""The workers of one supervisor: started, kept at strength with one spare, replaced, stopped.

Whoever takes a place has booted before, as the spare: the place of a worker that died, and that of one which is due to
be replaced (it has reached a mark, or the app was reloaded) at the moment when that has nothing to do. So a replacement
costs no more than a hand-over, and while replacements do not boot the old ones stay at work.
"""

import asyncio
import itertools
import math
import random
import time
from collections.abc import Iterable, Iterator
from logging import getLogger

from underway.definition.manifest import Lane, Manifest, Step
from underway.supervisor.logs.output_quota import OUTPUT_LIMIT
from underway.supervisor.workers.boot import BootError, WorkerBoots, working_folder
from underway.supervisor.workers.descendants import Descendants
from underway.supervisor.workers.process import WorkerListener, WorkerProcess
from underway.supervisor.workers.recycle import NO_LIMITS, MemorySampler, RecycleLimits, WorkerUsage
from underway.wire import frames, messages

log = getLogger("underway.supervisor")

# A worker that has died idle, before its first task and sooner than this, has hardly booted.
_PROVEN_SECONDS = 30.0
# Messages about the worker itself, not about a task.
_OF_ITSELF = frozenset((messages.Hello, messages.BootFailed, messages.Tainted))
_LONGEST_REASON = 200


class WorkerPool:
    """Keeps `size` workers at work and one more booted and idle. `manifest` is that of the newest that has booted."""

    def __init__(
        self,
        app: str,
        size: int,
        supervisor_id: str,
        recycle_limits: RecycleLimits = NO_LIMITS,
        output_limit: int = OUTPUT_LIMIT,
    ) -> None:
        self.size = size
        self.listener: WorkerListener | None = None  # hears what is said of tasks
        self.active: list[WorkerProcess] = []  # those that came last stand last
        self.spare: WorkerProcess | None = None
        self.lanes: dict[Lane, Step] = {}
        self.manifest: Manifest | None = None
        self.first_manifest: asyncio.Future[Manifest] = asyncio.get_running_loop().create_future()
        self._retired: list[WorkerProcess] = []  # replaced and asked to exit, but still alive
        self._welcome: messages.Welcome | None = None
        self._app = app
        self._folder = working_folder()
        self._supervisor_id = supervisor_id
        self._serial = itertools.count(1)
        self._rng = random.Random()  # noqa: S311 - spreads boots and replacements
        self._recycle_limits = recycle_limits
        self._output_limit = output_limit
        self._memory_sampler = MemorySampler(self._recycle_limits)
        self._boots = WorkerBoots(self._start_worker, self._rng)
        self._descendants = Descendants(f"{supervisor_id}/", lambda: {worker.pid for worker in self.workers})
        self._generation = 0
        self._some_due = False
        self._stopping = False

    @property
    def workers(self) -> Iterator[WorkerProcess]:
        """All that live, at whatever they are."""
        yield from self.active
        yield from self._boots
        yield from self._retired
        if self.spare is not None:
            yield self.spare

    @property
    def trouble(self) -> str:
        """Why workers do not boot, while they do not."""
        return self._boots.trouble

    @property
    def claimable(self) -> dict[Lane, Step]:
        """The lanes to claim from now: while workers differ in code, only those of the idle ones, if there are any.

        A run that no idle worker can do would wait here for a busy one, and keep the idle ones from their work.
        """
        if len({worker.generation for worker in self.active}) > 1:
            return _union(worker for worker in self.active if not worker.tasks) or self.lanes
        return self.lanes

    def start(self) -> None:
        self._fill()

    def welcome(self, message: messages.Welcome) -> None:
        """What every worker is told before its first task."""
        self._welcome = message
        for worker in self.workers:
            if worker.ready:
                worker.send(message)

    def reload(self) -> None:
        """Replace all workers, one after the other, by ones that import the app anew; begins again if it is on."""
        self._generation += 1
        self._boots.end()
        for worker in self.active:
            self._now_due(worker, "its code is old")
        self._fill()

    def check(self, now: float) -> None:
        """In every tick: who has reached a mark."""
        if self._memory_sampler.is_due(now):
            self._memory_sampler.sample({worker.pid: worker.usage for worker in self.active}, now)
        for worker in self.active:
            self._check_limits(worker, now)
        self._replace_due()

    def unused(self, idle: WorkerProcess, lane: Lane) -> WorkerProcess | None:
        """This worker, or if it has run anything the spare in its place; None while there is no such spare.

        What a step has left in its worker, a timer or a broken heap, may end it under another. (Three such deaths, and
        a run was quarantined that had done nothing.)
        """
        spare = self._fresh_spare()
        if spare is None:
            return idle if not idle.usage.tasks or self.trouble else None
        if not idle.usage.tasks or lane not in spare.lanes:
            return idle
        # In its place, since whoever asks is on its way through the list. The other is there if this one dies.
        self.active[self.active.index(idle)] = spare
        self.spare = idle
        spare.usage.begin()
        self.lanes = _union(self.active)
        self._fill()
        return spare

    def shortest_lease(self) -> float:
        """In seconds, over all workers: while the app is reloaded, an old worker keeps the leases of the old code."""
        steps = (step for worker in self.active for step in worker.lanes.values())
        return min((step.policy.lease.total_seconds() for step in steps), default=60.0)

    def vouch_until(self, expires_at: float) -> None:
        """Before a task is sent: the guardian kills the workers if this supervisor is stopped until `expires_at`."""
        self._descendants.guardian.expect_word_by(expires_at)

    def vouch(self) -> None:
        """At every tick, set the guardian's deadline to the earliest lease of the workers' tasks."""
        alive = (worker for worker in self.active if not worker.killing)
        self.vouch_until(
            min((task.lease_deadline for worker in alive for task in worker.tasks.values()), default=math.inf)
        )

    def stand_down(self) -> None:
        """Clear the guardian's deadline: no worker has a task."""
        self._descendants.guardian.stand_down()

    def keep_house(self) -> None:
        self._descendants.guardian.check()
        self._descendants.reap_adopted()

    def ignore_existing_children(self) -> None:
        """What hangs below us by now and is no worker is none of our business."""
        self._descendants.ignore_existing_children()

    # What worker processes report

    def received(self, worker: WorkerProcess, message: messages.Message) -> None:
        if type(message) in _OF_ITSELF:
            if isinstance(message, messages.Tainted):
                self._spoilt(worker, message.reason)
            else:
                self._hear_of_boot(worker, message)
        elif self.listener is not None:
            if isinstance(message, messages.Result):
                worker.usage.tasks += 1
                task = worker.tasks.get(message.token)
                if task is not None and task.stop_reason is not None:
                    worker.usage.left = worker.has_children()
                if worker.usage.left or worker.usage.tasks >= worker.usage.tasks_due:
                    self._check_limits(worker, time.monotonic())
            self.listener.received(worker, message)

    def _hear_of_boot(self, worker: WorkerProcess, message: messages.Message) -> None:
        if worker not in self._boots:  # its user's code speaks for it: it would be counted in two places
            raise frames.BrokenFrame(f"{type(message).__name__} of a worker that has booted")
        if isinstance(message, messages.Hello):
            self._booted(worker, message)
        elif isinstance(message, messages.BootFailed):
            self._boots.record_boot_error(worker, message, aloud=self.manifest is not None)

    def _spoilt(self, worker: WorkerProcess, reason: str) -> None:
        """Replace a worker that cannot restore its process: it runs no more tasks and returns those it was given."""
        if worker in self._boots:
            raise frames.BrokenFrame("Tainted of a worker that has not booted")
        worker.usage.taint = reason[:_LONGEST_REASON] or "a step has tainted it"
        worker.paused = True
        self._check_limits(worker, time.monotonic())

    def on_messages_processed(self) -> None:
        self._replace_due()
        if self.listener is not None:
            self.listener.on_messages_processed()

    def died(self, worker: WorkerProcess) -> None:
        retired = worker in self._retired
        if retired:
            self._retired.remove(worker)
        elif worker in self._boots:
            self._boot_failed(worker)
        else:
            self._lose(worker)
        self._fill()
        if self.listener is not None and not retired:
            self.listener.died(worker)

    # Booting

    def _fill(self) -> None:
        """Boot what is missing: a worker for each place where none can work, and a spare, all with today's code."""
        while not self._stopping and self._usable_count() + self._booting_count() < self.size + 1:
            taken = {worker.slot for worker in self.workers} | self._boots.pausing
            self._boots.begin(next(number for number in itertools.count(1) if number not in taken))

    def _usable_count(self) -> int:
        return sum(not worker.paused for worker in self.active)

    def _booting_count(self) -> int:
        booting = sum(not self._is_old(worker) for worker in self._boots)
        return booting + len(self._boots.pausing) + (self._fresh_spare() is not None)

    def _start_worker(self, slot: int) -> WorkerProcess:
        # The mark ends in a character that no number has: worker 1 must not be taken for worker 10.
        serial = next(self._serial)
        mark = f"{self._supervisor_id}/{serial};"
        usage = WorkerUsage(self._recycle_limits, self._rng)
        return WorkerProcess(
            self._app,
            slot,
            mark,
            self,
            self._descendants,
            pool_size=self.size,
            generation=self._generation,
            usage=usage,
            folder=self._folder,
            output_limit=self._output_limit,
            temporary=self._descendants.temporary.for_worker(serial),
        )

    def _booted(self, worker: WorkerProcess, hello: messages.Hello) -> None:
        if self._is_old(worker):
            return  # it was killed before it could say so
        try:
            worker.manifest = self.manifest = Manifest.from_json(hello.payload)
        except ValueError as error:
            raise frames.BrokenFrame(f"a Hello without manifest: {error}") from error
        worker.lanes = dict(worker.manifest.lanes())
        if self._welcome is not None:
            worker.send(self._welcome)
        self._boots.done(worker)
        if len(self.active) < self.size:
            self._place(worker)
        else:
            if self.spare is not None:
                self._retire(self.spare)
            self.spare = worker
        if not self.first_manifest.done():
            self.first_manifest.set_result(worker.manifest)

    def _boot_failed(self, worker: WorkerProcess) -> None:
        why = self._boots.died(worker)
        if self._stopping or self._is_old(worker):
            return
        if not self.first_manifest.done():  # it ends us, with these words
            self.first_manifest.set_exception(BootError(why, terminated=worker.terminated))
            self.stop_booting()
            return
        self._boots.failed(worker.slot, why)
        if old := sum(map(self._is_old, self.active)):
            log.error("not reloaded: %d of %d workers go on with the old code", old, self.size)

    # Places

    def _place(self, worker: WorkerProcess) -> None:
        worker.usage.begin()
        self.active.append(worker)
        self.lanes = _union(self.active)

    def _leave(self, worker: WorkerProcess) -> None:
        self.active.remove(worker)
        self.lanes = _union(self.active)

    def _lose(self, worker: WorkerProcess) -> None:
        """It died: the spare takes its place."""
        if worker is self.spare:
            self.spare = None
        else:
            self._leave(worker)
            if self.spare is not None:
                self._take_over(self.spare)
        # One that died by itself, of something that the app has started and will start again, has booted in vain.
        in_vain = not worker.tasks and not worker.usage.tasks and worker.kill_reason is None
        if in_vain and time.monotonic() - worker.started_at < _PROVEN_SECONDS and not self._stopping:
            self._boots.failed(worker.slot, f"it died idle: {worker.exit_text}")
        else:
            self._boots.reset_backoff(worker.slot)

    def _take_over(self, spare: WorkerProcess) -> None:
        self.spare = None
        self._place(spare)
        if self._is_old(spare):
            self._now_due(spare, "its code is old")
        elif spare.usage.taint:  # it had run tasks before it became the spare, and has just reported this
            self._now_due(spare, spare.usage.taint)

    def _check_limits(self, worker: WorkerProcess, now: float) -> None:
        if not worker.due and (mark := worker.usage.reached(now)):
            self._now_due(worker, mark)

    def _now_due(self, worker: WorkerProcess, why: str) -> None:
        worker.due = why
        self._some_due = True

    def _replace_due(self) -> None:
        """Replace who is due and has just become idle, as far as there are spares."""
        if not self._some_due or self._stopping:
            return
        for worker in [worker for worker in self.active if worker.due and not worker.tasks]:
            spare = self._fresh_spare()
            if spare is None:
                # It keeps working meanwhile, and rests only when a limit is fully reached, unless the new code does not
                # boot. A tainted worker always rests, because it would skip every task.
                worker.paused = bool(worker.usage.taint) or (worker.usage.over_limit and not self.trouble)
                continue
            log.info("worker replaced: %s", worker.due, extra={"about": {"worker": worker.slot, "pid": worker.pid}})
            self._leave(worker)
            self._retire(worker)
            self._take_over(spare)
            self._boots.reset_backoff(worker.slot)
            if self._is_old(worker) and not any(map(self._is_old, self.active)):
                log.info("reloaded: all workers run the new code")
        self._some_due = any(worker.due for worker in self.active)
        self._fill()

    def _retire(self, worker: WorkerProcess) -> None:
        """Ask an idle worker to exit in order."""
        self._retired.append(worker)
        worker.end()

    def _fresh_spare(self) -> WorkerProcess | None:
        """The spare, if it is as good as new."""
        return None if self.spare is None or self._is_old(self.spare) or self.spare.usage.tasks else self.spare

    def _is_old(self, worker: WorkerProcess) -> bool:
        return worker.generation < self._generation

    # Stopping

    def stop_booting(self) -> None:
        """No more replacements from here on."""
        self._stopping = True
        self._boots.stop()

    def retire_all(self) -> None:
        """Ask all idle workers to exit."""
        for worker in [worker for worker in self.active if not worker.tasks]:
            self._leave(worker)
            self._retire(worker)
        if self.spare is not None:
            self._retire(self.spare)
            self.spare = None

    def retired(self) -> bool:
        """Whether all workers that were asked to exit have done so."""
        return not self._retired

    async def kill_all(self) -> None:
        """Nothing that we started outlives this."""
        self.stop_booting()
        for worker in list(self.workers):
            worker.kill()
        while any(True for _ in self.workers):
            await asyncio.sleep(0.002)
        await self._descendants.settle()
        self._descendants.dismiss()


def _union(workers: Iterable[WorkerProcess]) -> dict[Lane, Step]:
    """What any of them can run; of a lane that several have, the step of the last."""
    lanes: dict[Lane, Step] = {}
    for worker in workers:
        lanes |= worker.lanes
    return lanes
