"""The claim loop: asks Postgres for as many tasks as the workers can take."""

import asyncio
import time
from collections.abc import Sequence

from underway.definition.manifest import Lane, Step
from underway.postgres.listener import Wakeup
from underway.postgres.reconnecting import DatabaseUnavailable
from underway.postgres.supervisor_store import Claimed, Lanes, Store
from underway.supervisor.loops.adaptive_batch import AdaptiveBatch
from underway.supervisor.loops.commit import CommitLoop
from underway.supervisor.loops.idle_declaration import IdleDeclaration
from underway.supervisor.loops.loop import DATABASE_ERRORS, Loop
from underway.supervisor.loops.time_share import TimeShare
from underway.supervisor.loops.unknown_runs import UnknownRuns
from underway.supervisor.signals import Signals
from underway.supervisor.tasks.dispatch import MOST_CLAIMED, Dispatch
from underway.supervisor.tasks.held import HeldTasks
from underway.supervisor.tasks.results import ResultHandler
from underway.supervisor.tasks.task import from_claim
from underway.supervisor.workers.pool import WorkerPool
from underway.wire import frames

POLL_SECONDS = 1.0
POLL_SECONDS_DEAF = 0.2
_STOP_SECONDS = 2.0
# The most bytes of input in one claim. With few workers Dispatch allows less.
MOST_BYTES = 32 * 1024 * 1024
# Renewals wait behind a claim, on the same connection. So even for a single large input a claim takes at most half of
# the default lease.
LONGEST_CLAIM_SECONDS = 30.0
# A claim from the start of the lanes passes over all rows that have left them since the last vacuum.
SCAN_SHARE = 0.1


class ClaimLoop(Loop):
    """Woken by notifications, by workers that run dry, and by runs that become due; polls in case one was missed."""

    def __init__(
        self,
        store: Store,
        pool: WorkerPool,
        dispatch: Dispatch,
        held: HeldTasks,
        commits: CommitLoop,
        results: ResultHandler,
        wakeup: Wakeup,
        signals: Signals,
    ) -> None:
        super().__init__("claim")
        self._store = store
        self._pool = pool
        self._dispatch = dispatch
        self._held = held
        self._commits = commits
        self._results = results
        self._wakeup = wakeup
        self._signals = signals
        self._unknown = UnknownRuns(store, held, pool)
        self._idle = IdleDeclaration(store)
        self._scan = TimeShare(SCAN_SHARE)
        self._batch = AdaptiveBatch(MOST_CLAIMED, MOST_BYTES, longest=LONGEST_CLAIM_SECONDS)
        self._backpressured = False  # nothing is claimed until commits have caught up
        self._got_less = False  # the latest claim got less than it asked for
        self._lanes = Lanes(())
        self._lanes_of: dict[Lane, Step] | None = None

    async def turn(self) -> float:
        tasks = self._demand()
        if tasks == 0:
            await self._unknown.release()
            return POLL_SECONDS  # a worker that becomes free wakes this loop; the poll is a fallback
        from_start = self._scan.is_due()
        claimed = await self._claim(tasks, from_start=from_start)
        await self._idle.claimed(got_all=claimed > 0 and not self._got_less)
        if claimed:
            return 0.0
        if not from_start:
            return self._scan.left()
        if await self._idle.declare() and await self._claim(tasks, from_start=True):
            return 0.0
        self._signals.nothing_claimed()
        return max(POLL_SECONDS if self._wakeup.listening else POLL_SECONDS_DEAF, self._scan.left())

    def commits_have_room(self) -> None:
        """Results that waited for their commit, and made this loop pause, have become fewer."""
        if self._backpressured:
            self.wake()

    def expect_unknown(self) -> None:
        """Look for a while for runs that we own without knowing of them."""
        self._unknown.expect(self._batch.seconds)
        self.wake()

    def forget_idle(self) -> None:
        """The row of this supervisor was written anew: claim, and declare it idle again."""
        self._idle.forget()
        self.wake()

    async def stop(self, running: "asyncio.Task[None]") -> None:
        """End the loop between two claims: an interrupted claim may have taken runs that we would not know of."""
        self._stopping = True
        self.wake()
        await asyncio.wait([running], timeout=_STOP_SECONDS)
        running.cancel()

    def _demand(self) -> int:
        self._backpressured = self._commits.full()
        return 0 if self._backpressured else self._dispatch.demand()

    async def _claim(self, tasks: int, *, from_start: bool) -> int:
        """Claim at most this many tasks and dispatch them. Returns how many."""
        await self._unknown.release()
        steps = self._pool.roster.claimable
        if steps is not self._lanes_of:
            self._serve(steps)
        tasks = min(tasks, self._batch.rows)
        size = min(self._batch.size, self._dispatch.room())
        try:
            claimed = await self._ask(tasks, size, from_start=from_start)
        except DATABASE_ERRORS as error:
            self.errors.report(error)
            # A claim whose data was refused has taken nothing. Woken for it, the loop asked again without a pause.
            if isinstance(error, DatabaseUnavailable):
                self.expect_unknown()
            return 0
        # Measured from the sending: the claim may have waited for the database much longer than a lease lasts.
        seconds = time.monotonic() - self._store.claim_sent_at
        if from_start:
            self._scan.used(seconds)
        carried = sum([len(run.input) for run in claimed])
        self._batch.succeeded(len(claimed), carried, seconds=seconds)
        self._got_less = len(claimed) < tasks and carried * 2 < size
        self._take(claimed, steps)
        return len(claimed)

    async def _ask(self, tasks: int, size: int, *, from_start: bool) -> list[Claimed]:
        with self._dispatch.expecting(tasks), self._batch.smaller_if_interrupted(tasks, size):
            return await self._store.claim(
                self._lanes,
                tasks,
                # Other claimers lock the same candidates first; after a short answer look further down the lane.
                candidates=min(tasks * 4, 4 * MOST_CLAIMED) if self._got_less else tasks,
                suspects=0 if self._held.has_suspect() else 1,
                size=size,
                from_start=from_start,
                seconds=self._batch.seconds,
            )

    def _take(self, claimed: Sequence[Claimed], steps: dict[Lane, Step]) -> None:
        tasks = [from_claim(run, steps[run.lane], self._store.claim_leased_from) for run in claimed]
        self._held.add(tasks)
        for task in tasks:
            if len(task.input) > frames.MAX_INPUT:
                self._results.too_large(task)
        self._dispatch.add(task for task in tasks if not task.ended)
        self._dispatch.pump()

    def _serve(self, steps: dict[Lane, Step]) -> None:
        self._lanes_of = steps
        self._lanes = Lanes((lane, step.policy) for lane, step in steps.items())
        self._idle.serve({lane.queue for lane in steps})
