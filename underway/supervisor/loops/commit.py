"""Group commit: the attempts that end during one commit are written together by the next one."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Collection
from logging import getLogger
from typing import Any

import psycopg

from underway.postgres.reconnecting import DatabaseUnavailable
from underway.postgres.supervisor_store import Store
from underway.postgres.transitions import AdvanceRun, FinishRun
from underway.supervisor.loops.adaptive_batch import AdaptiveBatch
from underway.supervisor.loops.commit_queue import MOST_BYTES, CommitQueue
from underway.supervisor.loops.commit_timer import CommitTimer
from underway.supervisor.loops.loop import DATABASE_ERRORS, Loop
from underway.supervisor.signals import Signals
from underway.supervisor.tasks.dispatch import Dispatch
from underway.supervisor.tasks.ended import Ended
from underway.supervisor.tasks.held import HeldTasks
from underway.supervisor.tasks.next_steps import NextSteps
from underway.supervisor.tasks.verdict import Observation, decide

log = getLogger("underway.supervisor")

MOST_TOGETHER = 1500
MOST_UNCOMMITTED = 4000
# A single payload gets enough time even on a very slow network. No lease expires meanwhile, because leases are renewed
# on another connection.
LONGEST_COMMIT_SECONDS = 600.0
_LOCKED_PAUSE = 0.05
# The outcome, in the summary, of a prefetched task that was released. ("released" in the log of an undisturbed
# supervisor looked like interrupted attempts.)
UNSTARTED = "released unstarted"


class CommitLoop(Loop):
    """Makes ended attempts durable. Until then their tasks stay held, and their leases are renewed.

    A run whose next step a worker here will be free for stays here: the hand-over claims it under its next token.
    """

    def __init__(
        self, store: Store, dispatch: Dispatch, held: HeldTasks, signals: Signals, *, rng: random.Random
    ) -> None:
        super().__init__("commit")
        self._store = store
        self._dispatch = dispatch
        self._held = held
        self._signals = signals
        self._rng = rng
        self._next_steps = NextSteps(dispatch)
        self._timer = CommitTimer()
        self._queue = CommitQueue(dispatch, self._timer)
        self._batch = AdaptiveBatch(MOST_TOGETHER, MOST_BYTES, longest=LONGEST_COMMIT_SECONDS)
        self._in_commit = self._in_commit_bytes = 0
        self._locked = 0  # attempts whose rows were locked, until they are tried again
        self._none_left = asyncio.Event()
        self._none_left.set()
        self.outcomes: Counter[str] = Counter()
        self.seconds: list[float] = []  # the duration of each commit, until the summary takes them

    def submit(self, ended: Ended) -> None:
        """Write the end of an attempt with one of the next commits."""
        self._held.end(ended.task)
        self._none_left.clear()
        self._queue.add(ended)

    def hurry(self) -> None:
        """Let the next commit leave now: a worker is free, or nothing more will come."""
        if self._queue:
            self._timer.hurry()

    def uncommitted(self) -> int:
        return len(self._queue) + self._in_commit + self._locked

    def full(self) -> bool:
        """More attempts wait than should: the database does not keep up."""
        return self.uncommitted() >= MOST_UNCOMMITTED or self._dispatch.backpressured

    async def flushed(self) -> None:
        """Wait until everything submitted so far is durable or known to be lost."""
        self.hurry()
        await self._none_left.wait()

    async def turn(self) -> float:
        """One commit. The turn begins with its pause, which the timer decides."""
        await self._timer.wait()
        batch, self._in_commit_bytes = self._queue.take(self._batch.rows, self._batch.size)
        self._in_commit = len(batch)
        begun = time.monotonic()
        for kind in (AdvanceRun, FinishRun):  # first the hand-overs, because workers may be waiting for them
            group = [ended for ended in batch if isinstance(ended.row, kind) and ended.task.token in self._held]
            if group:
                await self._commit(group)
        self.seconds.append(time.monotonic() - begun)
        self._in_commit = 0
        if not self.full():
            self._signals.commits_have_room()
        if self._queue:
            self._queue.offer_again()
        elif self.uncommitted() == 0:
            self._none_left.set()
        return 0.0

    async def _commit(self, group: list[Ended]) -> None:
        try:
            done = await self._write(group)
        except DatabaseUnavailable as error:
            log.warning("commit of %d attempts interrupted, it will be repeated: %s", len(group), error)
            self._batch.interrupted(len(group), sum(ended.size for ended in group))
            self._queue.put_back(group)
            return
        except psycopg.Error as error:
            await self._commit_alone(group, error)
            return
        seconds = time.monotonic() - self._store.commit_sent_at
        self._batch.succeeded(len(group), self._in_commit_bytes, seconds=seconds)
        missing = []
        for ended in group:
            if ended.task.token in done:
                self.durable(ended)
            else:
                missing.append(ended)
        if missing:
            await self._judge_missing(missing)

    async def _write(self, group: list[Ended]) -> Collection[int]:
        """Returns the tokens for which the fence held."""
        spawned = [{**spawn, "parent": ended.task.token} for ended in group for spawn in ended.spawned]
        if isinstance(group[0].row, FinishRun):
            rows = [ended.row for ended in group if isinstance(ended.row, FinishRun)]
            return await self._store.finish(rows, spawned, seconds=self._batch.seconds)
        return await self._hand_over(group, spawned)

    async def _hand_over(self, group: list[Ended], spawned: list[dict[str, Any]]) -> Collection[int]:
        rows = [ended.row for ended in group if isinstance(ended.row, AdvanceRun)]
        steps = self._next_steps.staying(rows, group)
        policies = [None if step is None else step.policy for step in steps]
        with self._dispatch.expecting(len(policies) - policies.count(None)):
            tokens = await self._store.continue_(rows, spawned, policies, seconds=self._batch.seconds)
        if stayed := self._next_steps.tasks(rows, group, steps, tokens, self._store.commit_leased_from):
            self._held.add(stayed)
            self._signals.next_steps(stayed)
        return tokens

    def durable(self, ended: Ended) -> None:
        """The end of the attempt is written."""
        self._held.commit(ended.task)
        attempt = ended.row.attempt
        unstarted = attempt.outcome == "released" and attempt.started is None
        self.outcomes[UNSTARTED if unstarted else attempt.outcome] += 1
        if isinstance(ended.row, AdvanceRun):
            self._signals.run_placed(ended.row.delay)
        if ended.task.suspect:
            self._signals.run_pending()  # one suspect is held at a time, so another one can be claimed now

    # What could not be written

    async def _commit_alone(self, group: list[Ended], error: psycopg.Error) -> None:
        """One of the group cannot be stored. Written alone, only that one fails, with its own message."""
        if len(group) > 1:
            for ended in group:
                await self._commit([ended])
            return
        (ended,) = group
        if error.diag.constraint_name == "finished_run_pkey":
            await self._drop(ended)
            return
        attempt = ended.row.attempt
        if ended.row.payload is not None or ended.spawned:
            message = f"what this attempt handed over cannot be stored: {error}"
            log.error("%s", message, extra={"about": {"run": ended.task.run}})
            attempt = attempt._replace(outcome="failed", error=message.replace("\0", "\N{REPLACEMENT CHARACTER}"))
            self.submit(Ended(ended.task, decide(ended.task, Observation.UNSTORABLE, attempt, self._rng), []))
        elif attempt.error is not None and (plain := _plain(attempt.error)) != attempt.error:
            log.error("storing the error of this attempt in ASCII: %s", error, extra={"about": ended.task.about})
            self.submit(ended._replace(row=ended.row._replace(attempt=attempt._replace(error=plain))))
        else:  # there is nothing more to leave out
            log.error("cannot record the attempt; leaving the run to the reaper", exc_info=error)
            self._held.abandon(ended.task)

    async def _drop(self, ended: Ended) -> None:
        """Delete a run that was inserted with the ID of a finished run: it cannot be finished too."""
        log.error("dropping this run: a finished run has the same id", extra={"about": ended.task.about})
        try:
            await self._store.drop(ended.task.run, ended.task.token)
        except DATABASE_ERRORS:
            self._queue.put_back([ended])
        else:
            self._held.abandon(ended.task)

    async def _judge_missing(self, missing: list[Ended]) -> None:
        """Judge each run: recorded before (durable), lost, or locked or cancelled (written again later)."""
        keys = [(ended.task.run, ended.task.token) for ended in missing]
        try:
            owned = await self._store.owned([run for run, _ in keys])
            recorded = await self._store.recorded(keys)
        except DATABASE_ERRORS:
            self._queue.put_back(missing)
            return
        locked = []
        for ended, key in zip(missing, keys, strict=True):
            if key in recorded:
                self._recorded_before(ended, recorded[key])
            elif key in owned:
                locked.append(self._cancelled(ended) if owned[key] else ended)
            else:
                self._held.lose(ended.task)
                log.warning("lease lost: this supervisor no longer owns the run, its attempt is not recorded",
                            extra={"about": {"run": key[0]}})  # fmt: skip
                self._signals.unknown_runs()
        if locked:
            self._locked += len(locked)
            asyncio.get_running_loop().call_later(_LOCKED_PAUSE, self._unlock, locked)

    def _unlock(self, group: list[Ended]) -> None:
        self._locked -= len(group)
        self._queue.put_back(group)

    def _cancelled(self, ended: Ended) -> Ended:
        """What is left to write of an attempt whose run was cancelled before its end was durable."""
        if isinstance(ended.row, FinishRun) and ended.row.state == "cancelled":
            return ended
        attempt = ended.row.attempt._replace(outcome="cancelled", error="cancelled before its end was written")
        return Ended(ended.task, decide(ended.task, Observation.CANCELLED, attempt, self._rng), [])

    def _recorded_before(self, ended: Ended, outcome: str) -> None:
        """Recorded by a commit of ours whose answer was lost, or by the step's own transaction before our verdict."""
        if outcome != ended.row.attempt.outcome:
            log.info("attempt %s after all: it had committed", outcome, extra={"about": ended.task.about})
            attempt = ended.row.attempt._replace(outcome=outcome)
            ended = ended._replace(row=ended.row._replace(attempt=attempt))
            self._signals.run_pending()  # the run may be pending at its next step
        self.durable(ended)
        self._signals.unknown_runs()


def _plain(text: str) -> str:
    """The text in ASCII without NUL, which any database can store."""
    return text.encode("ascii", "backslashreplace").decode().replace("\0", "\\x00")
