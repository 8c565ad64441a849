"""The claim loop: asks Postgres for as many tasks as the workers can take."""

import asyncio
import contextlib
import time
from collections.abc import Callable

from underway import wire
from underway.manifest import Lane, Step
from underway.postgres.session import ANSWER_SECONDS, DatabaseAway
from underway.postgres.store import Lanes, Store
from underway.supervisor.batch import Batch
from underway.supervisor.crew import Crew
from underway.supervisor.dispatch import MOST_CLAIMED, Dispatch
from underway.supervisor.faults import FAILED, Faults
from underway.supervisor.task import Task, from_claim

POLL_SECONDS = 1.0
POLL_SECONDS_DEAF = 0.2
# After so many claims in a row that got all they asked for, there is a backlog.
BACKLOG_CLAIMS = 5
_STOP_SECONDS = 2.0
# The most bytes of input in one claim. With few workers Dispatch allows less.
MOST_BYTES = 32 * 1024 * 1024
# Renewals wait behind a claim, on the same connection. So even for a single large input a claim takes at most half of
# the default lease.
LONGEST_CLAIM_SECONDS = 30.0
# A claim from the heads of the lanes passes over what left them since the last vacuum. It may take a tenth of the
# time: often while that is little, seldom while it is much.
HEAD_SHARE = 0.1


class Claims:
    """Woken by notifications, by workers that run dry, by runs that became due; polls behind all of that."""

    def __init__(
        self,
        store: Store,
        crew: Crew,
        dispatch: Dispatch,
        held: dict[int, Task],
        *,
        full: Callable[[], bool],
        listening: Callable[[], bool],
        on_empty: Callable[[], None],
        on_too_large: Callable[[Task], None],
    ) -> None:
        self._store = store
        self._crew = crew
        self._dispatch = dispatch
        self._faults = Faults("claim")
        self._held = held
        self._full = full
        self._listening = listening
        self._on_empty = on_empty
        self._on_too_large = on_too_large
        self._woken = asyncio.Event()
        self._idle = False
        self._full_claims = 0
        self._unknown_until = 0.0
        self._stopping = False
        self._paused = False
        self._short = False
        self._from_start = True
        self._head_at = 0.0
        self._batch = Batch(MOST_CLAIMED, MOST_BYTES, longest=LONGEST_CLAIM_SECONDS)
        self._lanes = Lanes(())
        self._lanes_of: object = None
        self._queues: set[str] = set()

    def wake(self) -> None:
        self._woken.set()

    def resume(self) -> None:
        """What waited for its commit, and made us pause, has become less."""
        if self._paused:
            self.wake()

    async def stop(self, running: "asyncio.Task[None]") -> None:
        """End the loop between two claims: one that is cut off may have taken runs that nobody knows of."""
        self._stopping = True
        self.wake()
        await asyncio.wait([running], timeout=_STOP_SECONDS)
        running.cancel()

    async def run(self) -> None:
        while not self._stopping:
            self._woken.clear()
            tasks = self._demand()
            if tasks == 0:
                await self._release_unknown()
                await self._sleep(POLL_SECONDS)  # whoever frees a place wakes us; this is for the one we overlooked
                continue
            claimed = await self._claim(tasks)
            self._full_claims = self._full_claims + 1 if claimed and not self._short else 0
            if self._idle and self._full_claims > BACKLOG_CLAIMS:
                await self._declare_busy()
            if claimed == 0:
                await self._claimed_nothing(tasks)

    async def _claimed_nothing(self, tasks: int) -> None:
        to_head = self._head_at - time.monotonic()
        if not self._from_start:
            await self._sleep(to_head)
        elif not await self._declare_idle(tasks):
            self._on_empty()
            await self._sleep(max(POLL_SECONDS if self._listening() else POLL_SECONDS_DEAF, to_head))

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0)):
                await self._woken.wait()

    def _demand(self) -> int:
        self._paused = self._full()
        return 0 if self._paused else self._dispatch.demand()

    async def _claim(self, tasks: int, *, from_start: bool = False) -> int:
        await self._release_unknown()
        steps = self._crew.claimable
        if steps is not self._lanes_of:
            self._serve(steps)
        tasks = min(tasks, self._batch.rows)
        suspects = 0 if any(task.suspect for task in self._held.values()) else 1
        # Other claimers lock the same candidates first; after a short answer look further down the lane.
        candidates = min(tasks * 4, 4 * MOST_CLAIMED) if self._short else tasks
        self._from_start = from_start or time.monotonic() >= self._head_at
        size = min(self._batch.size, self._dispatch.room())
        try:
            with self._dispatch.expecting(tasks), self._batch.smaller_if_interrupted(tasks, size):
                claimed = await self._store.claim(
                    self._lanes,
                    tasks,
                    candidates=candidates,
                    suspects=suspects,
                    size=size,
                    from_start=self._from_start,
                    seconds=self._batch.seconds,
                )
        except FAILED as error:
            self._faults.note(error)
            # A claim whose data was refused has taken nothing. Woken for it, the loop asked again without a pause.
            if isinstance(error, DatabaseAway):
                self.expect_unknown()
            return 0
        # Not when it was wanted: it may have waited for the database to come back, much longer than a lease.
        sent_at = self._store.claim_sent_at
        if self._from_start:
            now = time.monotonic()
            self._head_at = now + (now - sent_at) / HEAD_SHARE
        carried = sum([len(run.input) for run in claimed])
        self._batch.succeeded(len(claimed), carried, seconds=time.monotonic() - sent_at)
        self._short = len(claimed) < tasks and carried * 2 < size
        held = [from_claim(run, steps[run.lane], self._store.claim_leased_from) for run in claimed]
        self._held.update((task.token, task) for task in held)
        for task in held:
            if len(task.input) > wire.MAX_INPUT:
                self._on_too_large(task)
        self._dispatch.add(task for task in held if not task.ended)
        self._dispatch.pump()
        return len(claimed)

    def _serve(self, steps: dict[Lane, Step]) -> None:
        self._lanes_of = steps
        self._lanes = Lanes((lane, step.policy) for lane, step in steps.items())
        queues = {lane.queue for lane in steps}
        if not queues <= self._queues:
            self._idle = False  # what was declared keeps a new queue from being notified
        self._queues = queues

    def expect_unknown(self) -> None:
        """Look for unknown runs of ours for a while: until its deadline, an interrupted claim or hand-over may still
        take effect.
        """
        self._unknown_until = time.monotonic() + self._batch.seconds + ANSWER_SECONDS
        self.wake()

    async def _release_unknown(self) -> None:
        """A claim or hand-over whose answer was lost may have taken runs that we do not know of, and a standby that was
        promoted may know older claims of ours than we do; nobody is to blame.

        It may even do so later, in a backend that has not noticed yet that we are gone: so before each claim for a
        while, and never beside one.
        """
        if not self._unknown_until:
            return
        with contextlib.suppress(*FAILED):
            await self._store.release_unknown(self._known())
            if time.monotonic() > self._unknown_until:
                self._unknown_until = 0.0

    def _known(self) -> set[str]:
        """What is held, and what was lost as long as its worker lives: nobody else may begin it before."""
        tasks = [*self._held.values(), *(task for worker in self._crew.active for task in worker.tasks.values())]
        return {task.run for task in tasks}

    async def _declare_idle(self, tasks: int) -> bool:
        """Ask to be notified, then claim once more: whoever enqueued before it did not know. True if that found any.

        Only of the queues we serve: a NOTIFY makes those who enqueue commit one after another, use or no use.

        The declaration stays while there is little to do, and is taken back under a backlog, where a NOTIFY per
        transaction would only slow down those who enqueue.
        """
        if self._idle:
            return False
        try:
            await self._store.set_idle(True, self._queues)
        except FAILED:
            return False
        self._idle = True
        return await self._claim(tasks, from_start=True) > 0

    async def _declare_busy(self) -> None:
        self._idle = False
        with contextlib.suppress(*FAILED):
            await self._store.set_idle(False)

    def forget_idle(self) -> None:
        """The label of this supervisor was written anew, and it does not say idle: look, and say so again."""
        self._idle = False
        self.wake()
