"""Group commit: whatever ended while the last commit was under way goes into the next one."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Collection
from logging import getLogger
from typing import Any, NamedTuple

import psycopg

from underway.definition.manifest import Lane, Step
from underway.postgres.reconnecting import DatabaseUnavailable
from underway.postgres.supervisor_store import Store
from underway.postgres.transitions import AdvanceRun, FinishRun
from underway.supervisor.loops.adaptive_batch import AdaptiveBatch
from underway.supervisor.loops.commit_timer import CommitTimer
from underway.supervisor.loops.errors import FAILED
from underway.supervisor.tasks.dispatch import Dispatch
from underway.supervisor.tasks.task import Task, from_hand_over
from underway.supervisor.tasks.verdict import Observation, settle
from underway.text import storable
from underway.wire import messages

log = getLogger("underway.supervisor")

MOST_TOGETHER = 1500
# One statement carries no more than this, but for one payload that is larger. While so much waits (the database is slow
# or away) nothing is claimed and no worker is given another task: what they are at is all that can still come.
MOST_BYTES = 32 * 1024 * 1024
MOST_UNCOMMITTED = 4000
# A single payload gets enough time even on a very slow network. No lease expires meanwhile, because leases are renewed
# on another connection.
LONGEST_COMMIT_SECONDS = 600.0
# A run that is enqueued takes a statement as long as so much payload.
_SPAWN_BYTES = 1024
_LOCKED_PAUSE = 0.05
# The outcome, in the summary, of a prefetched task that was given back. ("released" in the log of an undisturbed
# supervisor looked like interrupted attempts.)
UNSTARTED = "returned unstarted"


class Ended(NamedTuple):
    """A task that ended, on its way to Postgres."""

    task: Task
    row: FinishRun | AdvanceRun
    spawned: list[messages.Spawn]


class Commits:
    """Takes endings from the supervisor and makes them durable; a task stays held, and renewed, until then.

    A run that goes on to its next step stays here if there will be a worker for it: `on_stay` is given the new task.
    `on_unknown` is called when a run may be ours under a token that nobody has heard of, `on_room` after each commit
    that leaves room for more.
    """

    def __init__(
        self,
        store: Store,
        dispatch: Dispatch,
        held: dict[int, Task],
        *,
        on_continue: Callable[[float], None],
        on_room: Callable[[], None],
        on_stay: Callable[[list[Task]], None],
        on_unknown: Callable[[], None],
        rng: random.Random,
    ) -> None:
        self._store = store
        self._dispatch = dispatch
        self._held = held
        self._on_continue = on_continue
        self._on_room = on_room
        self._on_stay = on_stay
        self._on_unknown = on_unknown
        self._rng = rng
        self._waiting: list[Ended] = []
        self._news: list[Ended] = []
        self._under_way = 0
        self._locked = 0
        self._waiting_bytes = self._under_way_bytes = 0
        self._batch = AdaptiveBatch(MOST_TOGETHER, MOST_BYTES, longest=LONGEST_COMMIT_SECONDS)
        self._pace = CommitTimer()
        self._empty = asyncio.Event()
        self._empty.set()
        self.outcomes: Counter[str] = Counter()
        self.seconds: list[float] = []  # that each commit took, until somebody takes them

    def submit(self, ended: Ended) -> None:
        ended.task.ended = True
        self._empty.clear()
        self._waiting.append(ended)
        self._track_bytes(_size(ended))
        if isinstance(ended.row, AdvanceRun):
            self._dispatch.expect(_may_stay(ended))
        self._news.append(ended)
        if len(self._news) == 1:  # once for all that is read from a worker together
            asyncio.get_running_loop().call_soon(self._offer)

    def hurry(self) -> None:
        """Let the next commit leave now: a worker is free, or nothing more will come."""
        if self._waiting:
            self._pace.hurry()

    def uncommitted(self) -> int:
        return len(self._waiting) + self._under_way + self._locked

    def full(self) -> bool:
        """More waits than should: the database does not keep up."""
        return self.uncommitted() >= MOST_UNCOMMITTED or self._dispatch.backpressured

    async def flushed(self) -> None:
        """Wait until everything submitted so far is durable or known to be lost."""
        self.hurry()
        await self._empty.wait()

    async def run(self) -> None:
        while True:
            await self._pace.departure()
            batch = self._take_batch()
            self._under_way = len(batch)
            begun = time.monotonic()
            await self._commit(batch)
            self.seconds.append(time.monotonic() - begun)
            self._under_way = 0
            if not self.full():
                self._on_room()
            if self._waiting:
                self._pace.offer(len(self._waiting), awaited=True)
            elif self.uncommitted() == 0:
                self._empty.set()

    def _track_bytes(self, size: int) -> None:
        """So much more waits than before."""
        self._waiting_bytes += size
        self._dispatch.backpressured = self._waiting_bytes >= MOST_BYTES

    def _offer(self) -> None:
        """Say when a commit should leave with what came just now."""
        news, self._news = self._news, []
        self._pace.offer(len(self._waiting), awaited=any(map(_awaited, news)))

    def _repeat(self, group: list[Ended]) -> None:
        """Let these leave again, and first."""
        self._waiting[:0] = group
        self._track_bytes(sum(map(_size, group)))
        self._dispatch.expect(sum(map(_may_stay, group)))
        self._pace.offer(len(self._waiting), awaited=True)

    def _take_batch(self) -> list[Ended]:
        """What leaves together."""
        size = count = 0
        most = self._batch.size
        for ended in self._waiting[: self._batch.rows]:
            size += _size(ended)
            if size > most and count:
                size -= _size(ended)
                break
            count += 1
        self._under_way_bytes = size
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        self._track_bytes(-size)
        self._dispatch.expect(-sum(map(_may_stay, batch)))
        return batch

    async def _commit(self, batch: list[Ended]) -> None:
        for kind in (AdvanceRun, FinishRun):  # first those that workers may be waiting for
            group = [ended for ended in batch if isinstance(ended.row, kind) and self._is_held(ended.task)]
            if group:
                await self._commit_group(group)

    async def _commit_group(self, group: list[Ended]) -> None:
        try:
            done = await self._write(group)
        except DatabaseUnavailable as error:
            log.warning("commit of %d attempts interrupted, it will be repeated: %s", len(group), error)
            self._batch.interrupted(len(group), sum(map(_size, group)))
            self._repeat(group)
            return
        except psycopg.Error as error:
            await self._one_by_one(group, error)
            return
        seconds = time.monotonic() - self._store.commit_sent_at
        self._batch.succeeded(len(group), self._under_way_bytes, seconds=seconds)
        missing = []
        for ended in group:
            if ended.task.token in done:
                self.durable(ended)
            else:
                missing.append(ended)
        if missing:
            await self._sort_out(missing)

    async def _write(self, group: list[Ended]) -> Collection[int]:
        """The tokens for which the fence held."""
        spawned = [{**spawn, "parent": ended.task.token} for ended in group for spawn in ended.spawned]
        if isinstance(group[0].row, FinishRun):
            rows = [ended.row for ended in group if isinstance(ended.row, FinishRun)]
            return await self._store.finish(rows, spawned, seconds=self._batch.seconds)
        return await self._hand_over([(e.task, e.row) for e in group if isinstance(e.row, AdvanceRun)], spawned)

    async def _hand_over(self, group: list[tuple[Task, AdvanceRun]], spawned: list[dict[str, Any]]) -> Collection[int]:
        staying = self._staying([row for _, row in group], [task.lane.job for task, _ in group])
        policies = [None if step is None else step.policy for step in staying]
        with self._dispatch.expecting(len(policies) - policies.count(None)):
            tokens = await self._store.continue_(
                [row for _, row in group], spawned, policies, seconds=self._batch.seconds
            )
        stayed = [
            from_hand_over(task, row, token, step, self._store.commit_leased_from)
            for (task, row), step in zip(group, staying, strict=True)
            if step is not None and (token := tokens.get(task.token)) is not None
        ]
        if stayed:
            self._held.update((task.token, task) for task in stayed)
            self._on_stay(stayed)
        return tokens

    def _staying(self, rows: list[AdvanceRun], jobs: list[str]) -> list[Step | None]:
        """The next step of each run that stays with us: there will be a worker that can run it."""
        free_capacity = self._dispatch.free_capacity()
        staying: list[Step | None] = []
        for row, job in zip(rows, jobs, strict=True):
            step = None
            if free_capacity > 0 and _goes_on_now(row) and row.queue is not None:
                step = self._dispatch.lanes.get(Lane(row.queue, job, row.step))
            free_capacity -= step is not None
            staying.append(step)
        return staying

    async def _one_by_one(self, group: list[Ended], error: psycopg.Error) -> None:
        """Something in the group cannot be stored. Alone, only the one to blame fails, with its own message."""
        if len(group) > 1:
            for ended in group:
                await self._commit_group([ended])
            return
        (ended,) = group
        if error.diag.constraint_name == "finished_run_pkey":
            await self._drop(ended)
            return
        attempt = ended.row.attempt
        if ended.row.payload is not None or ended.spawned:
            message = f"what this attempt handed over cannot be stored: {error}"
            log.error("%s", message, extra={"about": {"run": ended.task.run}})
            attempt = attempt._replace(outcome="failed", error=storable(message))
            self.submit(Ended(ended.task, settle(ended.task, Observation.UNSTORABLE, attempt, self._rng), []))
        elif attempt.error is not None and (plain := _plain(attempt.error)) != attempt.error:
            log.error("storing the error of this attempt in ASCII: %s", error, extra={"about": ended.task.about})
            self.submit(ended._replace(row=ended.row._replace(attempt=attempt._replace(error=plain))))
        else:  # there is nothing more to leave out; the reaper will take the run back
            log.error("this ending cannot be written at all, its lease will lapse", exc_info=error)
            self._held.pop(ended.task.token, None)

    async def _drop(self, ended: Ended) -> None:
        """Delete a run that was inserted with the ID of a finished run: it cannot be finished too."""
        log.error("dropping this run: a finished run has the same id", extra={"about": ended.task.about})
        try:
            await self._store.drop(ended.task.run, ended.task.token)
        except FAILED:
            self._repeat([ended])
        else:
            self._held.pop(ended.task.token, None)

    async def _sort_out(self, missing: list[Ended]) -> None:
        """Judge per run: already recorded (done), lost (dropped), locked by a stranger or cancelled (again later)."""
        keys = [(ended.task.run, ended.task.token) for ended in missing]
        try:
            owned = await self._store.owned([run for run, _ in keys])
            recorded = await self._store.recorded(keys)
        except FAILED:
            self._repeat(missing)
            return
        locked = []
        for ended, key in zip(missing, keys, strict=True):
            if key in recorded:
                self._settled_before(ended, recorded[key])
            elif key in owned:
                locked.append(self._cancelled(ended) if owned[key] else ended)
            else:
                self._held.pop(ended.task.token, None)
                log.warning("its run was taken from us, its ending is dropped", extra={"about": {"run": key[0]}})
                self._on_unknown()
        if locked:
            self._locked += len(locked)
            asyncio.get_running_loop().call_later(_LOCKED_PAUSE, self._unlock, locked)

    def _cancelled(self, ended: Ended) -> Ended:
        """What is left to write of an attempt whose run somebody has cancelled before its end was durable."""
        if isinstance(ended.row, FinishRun) and ended.row.state == "cancelled":
            return ended
        attempt = ended.row.attempt._replace(outcome="cancelled", error="cancelled before its end was written")
        return Ended(ended.task, settle(ended.task, Observation.CANCELLED, attempt, self._rng), [])

    def _unlock(self, group: list[Ended]) -> None:
        self._locked -= len(group)
        self._repeat(group)

    def _settled_before(self, ended: Ended, outcome: str) -> None:
        """By a commit of ours whose answer was lost, or by the step's own transaction: a verdict came too late."""
        if outcome != ended.row.attempt.outcome:
            log.info("attempt %s after all: it had committed", outcome, extra={"about": ended.task.about})
            attempt = ended.row.attempt._replace(outcome=outcome)
            ended = ended._replace(row=ended.row._replace(attempt=attempt))
            self._on_continue(0)  # the run may stand at its next step
        self.durable(ended)
        self._on_unknown()

    def durable(self, ended: Ended) -> None:
        """It is written: take it off."""
        self._held.pop(ended.task.token, None)
        attempt = ended.row.attempt
        unstarted = attempt.outcome == "released" and attempt.started is None
        self.outcomes[UNSTARTED if unstarted else attempt.outcome] += 1
        if isinstance(ended.row, AdvanceRun):
            self._on_continue(ended.row.delay)
        if ended.task.suspect:
            self._on_continue(0)  # one is held at a time, and this one no more

    def _is_held(self, task: Task) -> bool:
        return task.token in self._held


def _plain(text: str) -> str:
    """The text in ASCII without NUL, which any database can store."""
    return text.encode("ascii", "backslashreplace").decode().replace("\0", "\\x00")


def _size(ended: Ended) -> int:
    size = len(ended.row.payload or b"") + len(ended.row.attempt.error or "")
    if ended.spawned:
        size += sum(_SPAWN_BYTES + len(spawn["input"]) for spawn in ended.spawned)
    return size


def _may_stay(ended: Ended) -> bool:
    """Its run's next step may be our next task: the place for it must not be filled by a claim meanwhile."""
    return isinstance(ended.row, AdvanceRun) and _goes_on_now(ended.row)


def _goes_on_now(row: AdvanceRun) -> bool:
    return row.payload is not None and not row.delay and row.concurrency_key is None


def _awaited(ended: Ended) -> bool:
    """Something can go on when this is durable."""
    return isinstance(ended.row, AdvanceRun) or ended.task.holds_key or ended.task.suspect or bool(ended.spawned)
