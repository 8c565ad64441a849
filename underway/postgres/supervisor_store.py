"""All statements of a supervisor, one method each. Every write of an attempt is fenced in its SQL."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence, Set
from typing import Any, NamedTuple
from uuid import UUID

import orjson
import psycopg
from psycopg.rows import TupleRow

from underway.definition.manifest import Lane, Manifest, Placement, Policy
from underway.postgres.arrays import Column, Float8s, Int4s, Int8s, Texts, UUIDs
from underway.postgres.queries import statements
from underway.postgres.reconnecting import STATEMENT_SECONDS, ReconnectingConnection
from underway.postgres.step_transaction import transaction_name
from underway.postgres.transitions import AdvanceRun, FinishRun, continue_parameters, finish_parameters

_FIRST = UUID(int=0)
ANY_SIZE = 2**62
# A due time is computed when the run is written, and may have passed when the run is committed; by at most this.
_LATE_SECONDS = 1.0


class Claimed(NamedTuple):
    """A run as a claim returns it."""

    run: str
    token: int
    lane: Lane
    number: int
    attempts: int
    crashes: int
    releases: int
    scheduled_at: float | None
    input: bytes
    holds_key: bool = False


class Renewal(NamedTuple):
    run: str
    token: int
    lease: float
    progress: str | None


class Lanes:
    """Lanes with the policies they are claimed under, and a cursor for each: the last run that was claimed.

    Each claimed run leaves a dead index entry at the start of its lane until the next vacuum, and a vacuum cannot
    remove entries that an old snapshot may see. (A snapshot of three minutes slowed a claim down from 2 to 68 ms.) So a
    claim may begin behind the cursor. Runs that have been placed before the cursor since then (a retry, a release, a
    higher priority) are found by a claim that begins at the start of the lane.
    """

    def __init__(self, lanes: Iterable[tuple[Lane, Policy]]) -> None:
        served = list(lanes)
        self.lanes = [lane for lane, _ in served]
        self._columns = {
            "queues": Texts(lane.queue for lane in self.lanes),
            "jobs": Texts(lane.job for lane in self.lanes),
            "steps": Texts(lane.step for lane in self.lanes),
            "leases": Float8s(policy.lease.total_seconds() for _, policy in served),
            "max_crashes": Int4s(policy.max_crashes for _, policy in served),
        }
        self._starts = {"cursors": Float8s([-math.inf] * len(served)), "cursor_ids": UUIDs([_FIRST] * len(served))}
        self._cursors = {name: type(column)(column) for name, column in self._starts.items()}

    def columns(self, *, from_start: bool) -> dict[str, Column]:
        return {**self._columns, **(self._starts if from_start else self._cursors)}

    def advance_cursor(self, lane: int, rank: float, run: str) -> None:
        """Move the cursor of a lane, given by its index, to this run."""
        self._cursors["cursors"][lane] = rank
        self._cursors["cursor_ids"][lane] = run


class Store:
    """One supervisor's view of the queue. `work` commits; `leases` claims and renews, and never waits for a commit."""

    def __init__(self, work: ReconnectingConnection, leases: ReconnectingConnection, owner: UUID, host: str) -> None:
        self._work = work
        self._leases = leases
        self._owner = owner
        self._host = host
        self._last_token = 0
        self._due_since = self._expired_since = -math.inf
        work.on_open = leases.on_open = self._advance_token_sequence
        self.locked_keys: set[tuple[str, str]] = set()
        self.on_locked_keys: Callable[[], None] = lambda: None

    async def _advance_token_sequence(self, connection: psycopg.AsyncConnection[TupleRow]) -> None:
        """Advance the token sequence so that no token is reused: this server may not know the latest ones."""
        await connection.execute(statements()["recover_tokens"])
        if self._last_token:
            await connection.execute(statements()["advance_token_sequence"], {"last": self._last_token})

    async def claim(
        self,
        lanes: Lanes,
        tasks: int,
        *,
        candidates: int,
        suspects: int,
        size: int = ANY_SIZE,
        from_start: bool = True,
        seconds: float = STATEMENT_SECONDS,
    ) -> list[Claimed]:
        """Claim up to `tasks` runs in the order of their ranks.

        Their inputs together have at most `size` bytes; a single larger run is claimed alone. Unless `from_start`, each
        lane is read only from its cursor on.
        """
        limits = {"tasks": tasks, "candidates": candidates, "suspects": suspects, "size": size}
        parameters = {**lanes.columns(from_start=from_start), "owner": self._owner, **limits}
        rows = await self._leases.fetch("claim_tasks", parameters, seconds=seconds)
        claimed = []
        for run, token, n, number, attempts, crashes, releases, key, rank, slot, payload in rows:
            lane, data = lanes.lanes[n - 1], payload.encode()
            self._last_token = max(self._last_token, token)
            claimed.append(Claimed(run, token, lane, number, attempts, crashes, releases, slot, data, key))
            if not crashes:
                lanes.advance_cursor(n - 1, rank, run)
        return claimed

    @property
    def claim_sent_at(self) -> float:
        """When the latest claim was sent."""
        return self._leases.sent_at

    @property
    def claim_leased_from(self) -> float:
        """The same instant on the lease clock: the leases that the claim took began no earlier."""
        return self._leases.leased_from

    @property
    def commit_sent_at(self) -> float:
        """When the latest statement on the connection for commits was sent."""
        return self._work.sent_at

    @property
    def commit_leased_from(self) -> float:
        """The same instant on the lease clock, for runs that stay with this supervisor."""
        return self._work.leased_from

    async def finish(
        self, rows: Sequence[FinishRun], spawned: list[dict[str, Any]], *, seconds: float = STATEMENT_SECONDS
    ) -> set[int]:
        """Commit these and return the tokens for which the fence held; the other runs are locked or lost."""
        parameters = finish_parameters(rows, spawned, self._owner, self._host)
        done = await self._work.fetch("finish_runs", parameters, seconds=seconds)
        self._note_locked_keys(done)
        return {token for token, *_ in done}

    async def continue_(
        self,
        rows: Sequence[AdvanceRun],
        spawned: list[dict[str, Any]],
        keep: Sequence[Policy | None] | None = None,
        *,
        seconds: float = STATEMENT_SECONDS,
    ) -> dict[int, int | None]:
        """Like finish, for runs that move to a next step.

        A run for which `keep` has a policy is claimed again at once, under that policy: its new token is returned with
        the old one. A run whose next step has a concurrency key cannot be claimed again at once.
        """
        parameters = continue_parameters(rows, spawned, self._owner, self._host, keep)
        done = await self._work.fetch("continue_runs", parameters, seconds=seconds)
        self._note_locked_keys(done)
        self._last_token = max(self._last_token, *(kept or 0 for _, kept, *_ in done), 0)
        return {token: kept for token, kept, *_ in done}

    async def drop(self, run: str, token: int) -> bool:
        """Delete a run whose ID a finished run already has. Returns whether this supervisor owned such a run."""
        rows = await self._work.fetch("drop_run", {"id": run, "token": token, "owner": self._owner})
        self._note_locked_keys(rows)
        return bool(rows)

    async def owned(self, runs: Sequence[str], *, on_leases: bool = False) -> dict[tuple[str, int], bool]:
        """Which of these runs this supervisor still owns, as (run, token), and whether each has been cancelled."""
        session = self._leases if on_leases else self._work
        rows = await session.fetch("owned_runs", {"ids": UUIDs(runs), "owner": self._owner})
        return {(run, token): cancelled for run, token, cancelled in rows}

    async def recorded(
        self, attempts: Sequence[tuple[str, int]], *, on_leases: bool = False
    ) -> dict[tuple[str, int], str]:
        """The outcomes of those of these attempts that have been written."""
        session = self._leases if on_leases else self._work
        ids, tokens = zip(*attempts, strict=True)
        rows = await session.fetch("recorded_attempts", {"ids": UUIDs(ids), "tokens": Int8s(tokens)})
        return {(run, token): outcome for run, token, outcome in rows}

    async def renew(self, renewals: Sequence[Renewal]) -> set[str]:
        """Extend leases. Returns the renewed runs; the others are locked or lost."""
        ids, tokens, leases, progress = zip(*renewals, strict=True)
        parameters = {
            "ids": UUIDs(ids),
            "tokens": Int8s(tokens),
            "leases": Float8s(leases),
            "progress": Texts(progress),
            "owner": self._owner,
        }
        return {run for (run,) in await self._leases.fetch("renew_leases", parameters)}

    async def release_unknown(self, known: Collection[str]) -> None:
        """Release all runs that this supervisor owns, except those that it knows."""
        claimed = await self._leases.fetch("claimed_runs", {"owner": self._owner})
        unknown = [(run, token) for run, token in claimed if run not in known]
        if unknown:
            ids, tokens = zip(*unknown, strict=True)
            parameters = {"owner": self._owner, "ids": UUIDs(ids), "tokens": Int8s(tokens)}
            await self._leases.fetch("release_unknown", parameters)

    async def cancel_requests(self) -> list[tuple[str, int, int, int]]:
        """Run, token, attempts and crashes of each cancelled run of this supervisor.

        Sent on the connection of the claims: when it returns, the runs of all earlier claims are known.
        """
        rows = await self._leases.fetch("cancel_requests", {"owner": self._owner})
        return [(run, token, attempts, crashes) for run, token, attempts, crashes in rows]

    async def paused_queues(self) -> Set[str]:
        """The names of the paused queues. Sent on the connection of the claims, as cancel_requests is."""
        return {queue for (queue,) in await self._leases.fetch("paused_queues")}

    async def rehearse_renewal(self) -> float:
        """The database's time. Raises DatabaseUnavailable if leases cannot be renewed, even if there are none."""
        rows = await self._work.fetch("rehearse_renewal")
        return float(rows[0][0])

    async def reap(
        self, limit: int, expired_by: float | None = None, *, passing_over: int = 0
    ) -> list[tuple[str, int, str | None]]:
        """Take back runs whose leases have expired, by now or by `expired_by`: (run, token, final state or None).

        Raises psycopg.Error if the data of one of them cannot be written. The first `passing_over` are skipped.
        """
        parameters = {"limit": limit, "expired_by": expired_by, "passing_over": passing_over}
        rows = await self._work.fetch("reap_runs", parameters)
        self._note_locked_keys(rows)
        return [(run, token, final) for run, token, final, _ in rows]

    # Like reap, these raise psycopg.Error if a row's data is refused, and skip the first `passing_over` rows.

    async def expire(self, limit: int, *, from_start: bool = True, passing_over: int = 0) -> int:
        """Remove up to `limit` expired finished runs; unless `from_start`, begin after the last one removed."""
        since = -math.inf if from_start else self._expired_since
        rows = await self._work.fetch("expire_runs", {"limit": limit, "since": since, "passing_over": passing_over})
        self._expired_since = max((expires_at for (expires_at,) in rows), default=since)
        return len(rows)

    async def promote(self, limit: int, *, from_start: bool = True, passing_over: int = 0) -> int:
        since = -math.inf if from_start else self._due_since
        parameters = {"limit": limit, "since": since, "passing_over": passing_over}
        return len(await self._work.fetch("promote_runs", parameters))

    async def join_key_queue(self, limit: int, *, from_start: bool = True, passing_over: int = 0) -> int:
        """Put due runs in line for their keys, and grant these keys and those that were locked before.

        Returns the number of runs examined; if it is 0, no run has become pending.
        """
        since = -math.inf if from_start else self._due_since
        locked, self.locked_keys = self.locked_keys, set()
        keys = {"queues": Texts(queue for queue, _ in locked), "keys": Texts(key for _, key in locked)}
        parameters = {**keys, "limit": limit, "since": since, "passing_over": passing_over}
        rows = await self._work.fetch("join_key_queue", parameters)
        self._note_locked_keys(rows)
        return int(rows[0][0]) if rows else 0

    async def sweep_keys(self, after: tuple[str, str], limit: int) -> tuple[str, str]:
        """Grant free keys among the next `limit` keys after `after`. Returns the last one, or ("", "") at the end."""
        rows = await self._work.fetch("sweep_keys", {"queue": after[0], "key": after[1], "limit": limit})
        self._note_locked_keys(rows)
        queue, key, _ = rows[0] if rows else (None, None, None)
        return ("", "") if queue is None else (queue, key)

    def _note_locked_keys(self, rows: list[TupleRow]) -> None:
        """Remember the keys (the last column) that another session had locked, for the next join_key_queue."""
        for row in rows:
            if row[-1] is not None:
                self.locked_keys.update((queue, key) for queue, key in row[-1])
                self.on_locked_keys()
                return

    async def seconds_until_due(self, *, from_start: bool = True) -> float | None:
        """None if no run waits. Unless `from_start`, runs that were due at the last call are not considered.

        Their index entries are mostly dead ones, of all runs that have waited since the last vacuum. See Lanes.
        """
        since = -math.inf if from_start else self._due_since
        seconds: float | None
        ((seconds, since),) = await self._work.fetch("seconds_until_due", {"since": since})
        self._due_since = since - _LATE_SECONDS
        return seconds

    async def has_work(self, jobs: Iterable[str]) -> bool:
        rows = await self._work.fetch("has_work", {"jobs": list(jobs)})
        return bool(rows[0][0])

    async def terminate(self, tokens: Iterable[int]) -> None:
        """Terminate the server processes in which the `cx.tx` transactions of these attempts are still open."""
        await self._leases.fetch("terminate_transactions", {"names": Texts(map(transaction_name, tokens))})

    async def register(self, *, pid: int, app: str, lanes: Iterable[Lane] = (), trouble: str = "") -> None:
        label = {
            "host": self._host,
            "pid": pid,
            "app": app,
            "lanes": orjson.dumps([lane._asdict() for lane in lanes]).decode(),
            "trouble": trouble or None,
        }
        await self._work.fetch("register_supervisor", {"id": self._owner, **label})

    async def register_app(self, manifest: Manifest) -> None:
        """Register the app's jobs for `underway.enqueue`, and its queues for dead letters."""
        for job in manifest.jobs:
            await self.register_job(job.name, job.steps[0].name, job.steps[0].placement)
        for queue in manifest.queues:
            await self.register_queue(queue.name, queue.dead_letter)

    async def register_queue(self, name: str, dead_letter: str | None) -> None:
        await self._work.fetch("register_queue", {"name": name, "dead_letter": dead_letter})

    async def stranded_lanes(self) -> list[Lane]:
        """The lanes with runs that have been pending for a minute and that no live supervisor serves."""
        return [Lane(*row) for row in await self._work.fetch("long_stranded_lanes")]

    async def stop_requested(self) -> bool:
        rows = await self._leases.fetch("stop_requested", {"id": self._owner})
        return bool(rows[0][0])

    async def register_job(self, name: str, step: str, placement: Placement) -> None:
        await self._work.fetch("register_job", job_parameters(name, step, placement))

    async def heartbeat(self) -> bool:
        """Update seen_at. Returns whether the supervisor's row still exists: a recreated schema has lost it."""
        rows = await self._work.fetch("still_here", {"id": self._owner})
        return bool(rows[0][0])

    async def set_idle(self, idle: bool, queues: Iterable[str] | None = None) -> None:
        """While a supervisor is idle, it is notified of work in these queues, or in all if `queues` is None."""
        named = None if queues is None else Texts(sorted(queues))
        await self._work.fetch("set_idle", {"id": self._owner, "idle": idle, "queues": named})

    async def forget_supervisors(self) -> None:
        await self._work.fetch("forget_supervisors")

    async def deregister(self) -> None:
        await self._work.fetch("deregister_supervisor", {"id": self._owner})


def job_parameters(name: str, step: str, placement: Placement) -> dict[str, Any]:
    """What register_job writes: the first step and where its runs are placed."""
    return {
        "name": name,
        "step": step,
        "queue": placement.queue,
        "priority": placement.priority,
        "delay": placement.delay,
        "keep": placement.keep,
        "unique_key": placement.unique_key,
        "concurrency_key": placement.concurrency_key,
        "concurrency_limit": placement.concurrency_limit,
    }
