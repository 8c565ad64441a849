"""What the SQL of the store does, in Python: tokens, owners, leases, locked rows, cancel requests, lost answers.

The fences are written down here a second time, and on purpose as plainly as that.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

import psycopg

from simulation.clockwork import Clockwork
from underway.manifest import Lane, Policy
from underway.postgres.endings import Continue, Finish
from underway.postgres.session import DatabaseAway
from underway.postgres.store import Claimed, Lanes, Renewal

T = TypeVar("T")

UNSTORABLE = b'"cannot be stored"'
# How often a statement does not come to its end as one hopes.
LOST_BEFORE = LOST_AFTER = 0.004
LOST_AND_LATE = 0.002
LATEST = 8.0


class Broken(AssertionError):
    """A promise was broken."""


@dataclass(slots=True)
class Row:
    run: str
    lane: Lane
    rank: float
    state: str = "pending"
    due: float = 0.0
    token: int = 0
    owner: UUID | None = None
    lease_until: float = 0.0
    number: int = 0
    attempts: int = 0
    crashes: int = 0
    releases: int = 0
    max_crashes: int = 3
    cancel_requested: bool = False
    input: bytes = b"0"
    locked_until: float = 0.0


class Database:
    def __init__(self, loop: Clockwork) -> None:
        self.loop = loop
        self.live: dict[str, Row] = {}
        self.finished: dict[str, str] = {}
        self.attempts: dict[tuple[str, int], str] = {}
        self.left: dict[int, str] = {}  # how each token ceased to be its run's
        self.succeeded: dict[str, list[str]] = {}  # the steps of each run, as they were committed
        self.cancels: set[str] = set()  # committed while the run was in progress
        self.executed: set[int] = set()  # tokens of which a worker has begun the user's code
        self.produced: dict[int, str] = {}  # and how that ended
        self.terminated: set[int] = set()
        self.away_until = 0.0
        self.sent_at = 0.0
        self.lossy = True
        self.listeners: list[Session] = []
        self.on_reaped: Callable[[str, int], None] = lambda run, token: None
        self._tokens = itertools.count(1)
        self._runs = itertools.count(1)

    def latency(self) -> float:
        return self.loop.rng.expovariate(2000) + (self.loop.rng.random() < 0.01) * self.loop.rng.uniform(0, 0.5)

    # Clients

    def enqueue(self, job: str, step: str, count: int) -> None:
        for _ in range(count):
            run = f"run{next(self._runs):07}"
            self.live[run] = Row(run, Lane("default", job, step), self.loop.time())
            self.succeeded[run] = []
        self.notify("default")

    def cancel(self, run: str) -> None:
        row = self.live[run]
        if row.locked_until > self.loop.time():
            return
        self.loop.note("cancel", run, row.state)
        if row.state == "in_progress":
            row.cancel_requested = True
            self.cancels.add(run)
            self.notify("cancel")
        else:
            self._close(row, "cancelled")

    def notify(self, payload: str) -> None:
        for session in self.listeners:
            self.loop.happen(self.latency(), lambda heard=session.heard: heard(payload))  # type: ignore[misc]

    # Supervisors

    def claim(self, owner: UUID, lanes: Lanes, tasks: int, candidates: int, suspects: int, head: bool) -> list[Claimed]:
        columns: Any = lanes.columns(from_head=head)
        chosen: list[tuple[float, str, int]] = []
        for suspect, most in ((False, candidates), (True, suspects)):
            found = []
            for n, lane in enumerate(lanes.lanes):
                mark = (columns["marks"][n], columns["mark_ids"][n])
                found += [
                    (row.rank, row.run, n)
                    for row in self.live.values()
                    if row.lane == lane and row.state == "pending" and (row.crashes > 0) == suspect
                    and (suspect or (row.rank, row.run) > mark)
                ]  # fmt: skip
            chosen += sorted(found)[:most]
        claimed: list[Claimed] = []
        for rank, run, n in sorted(chosen):
            row = self.live[run]
            if len(claimed) == tasks or self._locked(row):
                continue
            row.state, row.owner, row.token = "in_progress", owner, next(self._tokens)
            row.lease_until = self.loop.time() + columns["leases"][n]
            row.max_crashes = columns["max_crashes"][n]
            if not row.crashes:
                lanes.mark(n, rank, run)
            claimed.append(
                Claimed(run, row.token, row.lane, row.number, row.attempts, row.crashes, row.releases, None, row.input)
            )
        return claimed

    def finish(self, owner: UUID, rows: Iterable[Finish]) -> set[int]:
        rows = list(rows)
        if any(row.payload == UNSTORABLE for row in rows):
            raise psycopg.DataError("this payload cannot be stored")
        done = set()
        for given in rows:
            row = self._held(given.run, given.token, owner)
            if row is not None and row.cancel_requested == (given.state == "cancelled"):
                self._note(row, given)
                self._close(row, given.state)
                done.add(given.token)
        return done

    def continue_(
        self, owner: UUID, rows: Sequence[Continue], keep: Sequence[Policy | None] | None
    ) -> dict[int, int | None]:
        if any(row.payload == UNSTORABLE for row in rows):
            raise psycopg.DataError("this payload cannot be stored")
        done: dict[int, int | None] = {}
        for given, policy in zip(rows, keep or [None] * len(rows), strict=True):
            row = self._held(given.run, given.token, owner)
            if row is None or row.cancel_requested:
                continue
            self._note(row, given)
            now = self.loop.time()
            row.lane = Lane(given.queue or row.lane.queue, row.lane.job, given.step)
            row.input = given.payload or row.input
            row.number, row.attempts = given.number, given.attempts
            row.crashes, row.releases = given.crashes, given.releases
            if given.delay > 0:
                row.due = row.rank = now + given.delay
            if policy is not None:
                row.token, row.max_crashes = next(self._tokens), policy.max_crashes
                row.lease_until = now + policy.lease.total_seconds()
                done[given.token] = row.token
            else:
                row.state, row.owner = "waiting" if given.delay > 0 else "pending", None
                done[given.token] = None
                self.notify("default")
        return done

    def renew(self, owner: UUID, renewals: Iterable[Renewal]) -> set[str]:
        renewed = set()
        for run, token, lease, _progress in renewals:
            row = self._held(run, token, owner)
            if row is not None and not row.cancel_requested:
                row.lease_until = self.loop.time() + lease
                renewed.add(run)
        return renewed

    def owned(self, owner: UUID, runs: Iterable[str]) -> dict[tuple[str, int], bool]:
        rows = [self.live[run] for run in runs if run in self.live]
        return {
            (row.run, row.token): row.cancel_requested
            for row in rows
            if row.owner == owner and row.state == "in_progress"
        }

    def recorded(self, keys: Iterable[tuple[str, int]]) -> dict[tuple[str, int], str]:
        return {key: self.attempts[key] for key in keys if self.attempts.get(key, "lost") != "lost"}

    def claimed(self, owner: UUID) -> list[tuple[str, int]]:
        return [
            (row.run, row.token)
            for row in self.live.values()
            if row.state == "in_progress" and row.owner == owner and not row.cancel_requested
        ]

    def release_unknown(self, owner: UUID, unknown: Iterable[tuple[str, int]]) -> None:
        for run, token in unknown:
            row = self._held(run, token, owner)
            if row is not None and not row.cancel_requested:
                self.loop.note("released unknown", row.run, row.token)
                self._leave(row.token, "unknown")
                row.state, row.owner, row.releases = "pending", None, row.releases + 1

    def cancel_requests(self, owner: UUID) -> list[tuple[str, int, int, int]]:
        return [
            (row.run, row.token, row.attempts, row.crashes)
            for row in self.live.values()
            if row.cancel_requested and row.owner == owner
        ]

    def reap(self) -> list[tuple[str, int, str | None]]:
        now, reaped = self.loop.time(), []
        for row in list(self.live.values()):
            if row.state != "in_progress" or row.lease_until >= now or self._locked(row):
                continue
            self.loop.note("reaped", row.run, row.token)
            self.on_reaped(row.run, row.token)
            final = None
            if row.cancel_requested:
                final = "cancelled"
            elif row.crashes > 0 and row.crashes + 1 >= row.max_crashes:
                final = "failed"
            self._write(row, row.token, "cancelled" if final == "cancelled" else "lost")
            reaped.append((row.run, row.token, final))
            if final is not None:
                self._close(row, final)
                continue
            row.crashes, row.number = row.crashes + 1, row.number + 1
            row.state, row.owner = "waiting", None
            row.due = row.rank = now + min(60, 2 ** (row.crashes - 1))
        return reaped

    def promote(self) -> int:
        due = [row for row in self.live.values() if row.state == "waiting" and row.due <= self.loop.time()]
        free = [row for row in due if not self._locked(row)]
        for row in free:
            row.state = "pending"
        if free:
            self.notify("default")
        return len(free)

    def seconds_until_due(self) -> float | None:
        return min((row.due for row in self.live.values() if row.state == "waiting"), default=None)

    # Fences and records

    def _locked(self, row: Row) -> bool:
        return row.locked_until > self.loop.time()

    def _held(self, run: str, token: int, owner: UUID) -> Row | None:
        row = self.live.get(run)
        ours = row is not None and row.token == token and row.owner == owner and row.state == "in_progress"
        return row if ours and not self._locked(row) else None  # type: ignore[arg-type]

    def _note(self, row: Row, given: Finish | Continue) -> None:
        """The attempt that this row ends."""
        outcome, token = given.attempt.outcome, given.token
        self.loop.note("committed", row.run, token, outcome)
        if given.attempt.started is None:
            self._leave(token, "given back")
            return
        if token not in self.executed and outcome in ("succeeded", "timed_out"):
            raise Broken(f"{row.run} {token}: {outcome}, but no worker has begun it")
        if outcome == "succeeded" and self.produced.get(token) not in ("next", "done", "committed"):
            raise Broken(f"{row.run} {token}: succeeded, but its worker has produced {self.produced.get(token)}")
        self._write(row, token, outcome)

    def _write(self, row: Row, token: int, outcome: str) -> None:
        if (row.run, token) in self.attempts:
            raise Broken(f"{row.run} {token}: {outcome} and {self.attempts[row.run, token]}")
        self.attempts[row.run, token] = outcome
        self._leave(token, outcome)
        if outcome == "succeeded":
            if row.lane.step in self.succeeded[row.run]:
                raise Broken(f"{row.run}: step {row.lane.step} has succeeded twice")
            self.succeeded[row.run].append(row.lane.step)

    def _leave(self, token: int, how: str) -> None:
        if how == "given back" and token in self.executed:
            raise Broken(f"{token}: given back as never started, but its worker has begun it")
        self.left.setdefault(token, how)

    def _close(self, row: Row, state: str) -> None:
        if row.run in self.cancels and state != "cancelled":
            raise Broken(f"{row.run}: {state} after it was cancelled")
        del self.live[row.run]
        self.finished[row.run] = state


class Session:
    """A connection that comes and goes, as the real one does it."""

    def __init__(self, database: Database) -> None:
        self.on_notify: Callable[[str], None] | None = None
        self.on_broken: Callable[[], None] | None = None
        self.opened = 0
        self.away_until = 0.0
        self._database = database
        self._loop = database.loop
        self._lock = asyncio.Lock()
        self._open = False
        self._listening = False

    def cut(self, seconds: float) -> None:
        """The way to the database is closed for so long."""
        self.away_until = self._loop.time() + seconds
        self._break()
        if self.on_broken is not None and self._loop.rng.random() < 0.5:
            self.on_broken()

    async def open(self) -> None:
        async with self._lock:
            if not self._open and self._is_away():
                raise DatabaseAway("away")
            self._opened()

    async def ready(self) -> None:
        async with self._lock:
            await self._open_patiently()

    async def _open_patiently(self) -> None:
        while not self._open:
            if not self._is_away():
                self._opened()
            else:
                await asyncio.sleep(self._loop.rng.uniform(0.05, 1))

    async def fetch(self, statement: str, parameters: Any = None) -> list[Any]:
        """The few that do not go through the store."""
        return await self.do(statement, lambda: self._answer(statement, parameters))

    async def do(self, name: str, effect: Callable[[], T]) -> T:
        rng = self._loop.rng
        async with self._lock:
            await self._open_patiently()
            self.sent_at = self._loop.time()
            answer: asyncio.Future[T] = self._loop.create_future()
            there, back = self._database.latency(), self._database.latency()
            fate = rng.random() if self._database.lossy else 1.0
            # A backend that has not noticed that we are gone may still do what it was told, a while later.
            late = rng.uniform(0, LATEST) if fate < LOST_AND_LATE else 0.0
            fate -= LOST_AND_LATE
            if late:
                self._loop.happen(there, lambda: self._lose(answer, name))
                self._loop.happen(there + late, lambda: self._unheard(effect))
            elif fate < LOST_BEFORE:
                self._loop.happen(there, lambda: self._lose(answer, name))
            else:
                lost = fate < LOST_BEFORE + LOST_AFTER
                self._loop.happen(there, lambda: self._arrive(answer, name, effect, back, lost=lost))
            try:
                return await answer
            except DatabaseAway:
                await asyncio.sleep(rng.uniform(0.05, 0.2))
                raise

    def heard(self, payload: str) -> None:
        if self._open and self._listening and self.on_notify is not None:
            self.on_notify(payload)

    def _arrive(self, answer: "asyncio.Future[Any]", name: str, effect: Any, back: float, *, lost: bool) -> None:
        if self._is_away():
            self._lose(answer, name)
            return
        try:
            result = effect()
        except psycopg.Error as error:
            refused = error
            self._loop.happen(back, lambda: self._refuse(answer, refused))
            return
        if lost:
            self._loop.happen(back, lambda: self._lose(answer, name))
        else:
            self._loop.happen(back, lambda: self._return(answer, name, result))

    def _refuse(self, answer: "asyncio.Future[Any]", error: Exception) -> None:
        if not answer.done():
            answer.set_exception(error)

    def _return(self, answer: "asyncio.Future[Any]", name: str, result: Any) -> None:
        if self._is_away():
            self._lose(answer, name)
        elif not answer.done():
            answer.set_result(result)

    def _unheard(self, effect: Callable[[], Any]) -> None:
        with contextlib.suppress(psycopg.Error):
            effect()

    def _lose(self, answer: "asyncio.Future[Any]", name: str) -> None:
        self._loop.note("connection lost at", name)
        self._break()
        if not answer.done():
            answer.set_exception(DatabaseAway("connection lost"))

    def _break(self) -> None:
        self._open = self._listening = False

    def _opened(self) -> None:
        if not self._open:
            self._open = True
            self.opened += 1

    def _is_away(self) -> bool:
        return self._loop.time() < max(self.away_until, self._database.away_until)

    def _answer(self, statement: str, parameters: Any) -> list[Any]:
        if statement == "listen":
            self._listening = True
            if self not in self._database.listeners:
                self._database.listeners.append(self)
        elif statement == "notify_self":
            self._loop.happen(self._database.latency(), lambda: self.heard(parameters["nonce"]))
        return []


class FakeStore:
    """The store of one supervisor. `holds` tells which tokens that supervisor has now."""

    def __init__(self, database: Database, work: Session, leases: Session, owner: UUID) -> None:
        self.holds: Callable[[], dict[int, Any]] = dict
        self.locked_keys: set[tuple[str, str]] = set()
        self.on_locked_keys: Callable[[], None] = lambda: None
        self._database = database
        self._work = work
        self._leases = leases
        self._owner = owner

    async def claim(
        self, lanes: Lanes, tasks: int, *, candidates: int, suspects: int, from_head: bool = True
    ) -> list[Claimed]:
        return await self._leases.do(
            "claim", lambda: self._database.claim(self._owner, lanes, tasks, candidates, suspects, from_head)
        )

    @property
    def claim_sent_at(self) -> float:
        return self._leases.sent_at

    @property
    def commit_sent_at(self) -> float:
        return self._work.sent_at

    async def finish(self, rows: Sequence[Finish], spawned: list[dict[str, Any]]) -> set[int]:
        self._are_held(row for row in rows if row.state != "cancelled")  # nobody holds an orphan that is closed
        return await self._work.do("finish", lambda: self._database.finish(self._owner, rows))

    async def continue_(
        self, rows: Sequence[Continue], spawned: list[dict[str, Any]], keep: Sequence[Policy | None] | None = None
    ) -> dict[int, int | None]:
        self._are_held(rows)
        return await self._work.do("continue", lambda: self._database.continue_(self._owner, rows, keep))

    def _are_held(self, rows: Iterable[Finish | Continue]) -> None:
        if lost := [row.token for row in rows if row.token not in self.holds()]:
            raise Broken(f"something is to be written for {lost}, which are not held any more")

    async def owned(self, runs: Sequence[str], *, on_leases: bool = False) -> dict[tuple[str, int], bool]:
        session = self._leases if on_leases else self._work
        return await session.do("owned", lambda: self._database.owned(self._owner, runs))

    async def recorded(self, keys: Sequence[tuple[str, int]], *, on_leases: bool = False) -> dict[tuple[str, int], str]:
        session = self._leases if on_leases else self._work
        return await session.do("recorded", lambda: self._database.recorded(keys))

    async def renew(self, renewals: Sequence[Renewal]) -> set[str]:
        return await self._leases.do("renew", lambda: self._database.renew(self._owner, renewals))

    async def release_unknown(self, known: Collection[str]) -> None:
        claimed = await self._leases.do("claimed", lambda: self._database.claimed(self._owner))
        unknown = [(run, token) for run, token in claimed if run not in known]
        if unknown:
            await self._leases.do("release unknown", lambda: self._database.release_unknown(self._owner, unknown))

    async def cancel_requests(self) -> list[tuple[str, int, int, int]]:
        return await self._leases.do("cancel requests", lambda: self._database.cancel_requests(self._owner))

    async def reap(self, limit: int) -> list[tuple[str, int, str | None]]:
        return await self._work.do("reap", self._database.reap)

    async def promote(self, limit: int, *, from_head: bool = True) -> int:
        return await self._work.do("promote", self._database.promote)

    async def seconds_until_due(self, *, from_head: bool = True) -> float | None:
        due: float | None = await self._work.do("due", self._database.seconds_until_due)
        return None if due is None else due - self._database.loop.time()

    async def terminate(self, tokens: Iterable[int]) -> None:
        named = set(tokens)
        await self._leases.do("terminate", lambda: self._database.terminated.update(named))

    async def stop_requested(self) -> bool:
        return False

    # Of no account here

    async def line_up(self, limit: int, *, from_head: bool = True) -> int:
        return 0

    async def sweep_keys(self, after: tuple[str, str], limit: int) -> tuple[str, str]:
        return "", ""

    async def expire(self, limit: int, *, from_head: bool = True) -> int:
        return 0

    async def stranded_lanes(self) -> list[Lane]:
        return []

    async def register(self, **label: Any) -> None: ...
    async def register_job(self, *job: Any) -> None: ...
    async def register_queue(self, *queue: Any) -> None: ...
    async def forget_supervisors(self) -> None: ...
    async def set_idle(self, idle: bool, queues: Iterable[str] | None = None) -> None: ...
    async def deregister(self) -> None: ...
