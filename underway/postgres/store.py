"""What a supervisor asks of Postgres, statement by statement. Every write of an attempt is fenced in its SQL."""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

import orjson

from underway.manifest import Lane, Placement, Policy
from underway.postgres.session import Session


class Claimed(NamedTuple):
    """A run as a claim returns it."""

    run: str
    token: int
    lane: Lane
    number: int
    attempts: int
    crashes: int
    releases: int
    priority: int
    keep: timedelta
    input: bytes


class Attempt(NamedTuple):
    """What the attempt row will say. Times are seconds before the commit; `started` is None for a task never begun."""

    outcome: str
    error: str | None = None
    started: float | None = None
    ended: float = 0.0
    pid: int | None = None
    cpu_seconds: float | None = None
    peak_rss: int | None = None


class Finish(NamedTuple):
    """The run ends: its row moves to finished_run. `payload` is the result."""

    run: str
    token: int
    state: str
    payload: str | None
    attempts: int
    crashes: int
    attempt: Attempt


class Continue(NamedTuple):
    """The run goes on: at its next step with `payload`, or at the same step with the input it has (None)."""

    run: str
    token: int
    step: str
    queue: str
    priority: int
    keep: float
    payload: str | None
    delay: float
    number: int
    attempts: int
    crashes: int
    releases: int
    ran_step: str
    ran_number: int
    attempt: Attempt


class Renewal(NamedTuple):
    run: str
    token: int
    lease: float
    progress: str | None


class Lanes:
    """Lanes with the policies they are claimed under, as arrays for the claim."""

    def __init__(self, lanes: Iterable[tuple[Lane, Policy]]) -> None:
        served = list(lanes)
        self.parameters = {
            "queues": [lane.queue for lane, _ in served],
            "jobs": [lane.job for lane, _ in served],
            "steps": [lane.step for lane, _ in served],
            "leases": [policy.lease.total_seconds() for _, policy in served],
            "max_crashes": [policy.max_crashes for _, policy in served],
        }


# The statement's names for the fields of Continue, but for the last.
_CONTINUE_ARRAYS = (
    "ids",
    "tokens",
    "steps",
    "queues",
    "priorities",
    "keeps",
    "payloads",
    "delays",
    "numbers",
    "attempts",
    "crashes",
    "releases",
    "ran_steps",
    "ran_numbers",
)


class Store:
    """One supervisor's view of the queue. `work` claims and commits, `leases` renews and never waits for `work`."""

    def __init__(self, work: Session, leases: Session, owner: UUID, host: str) -> None:
        self._work = work
        self._leases = leases
        self._owner = owner
        self._host = host

    async def claim(self, lanes: Lanes, tasks: int, *, candidates: int, suspects: int) -> list[Claimed]:
        rows = await self._work.fetch(
            "claim_tasks",
            {**lanes.parameters, "owner": self._owner, "tasks": tasks, "candidates": candidates, "suspects": suspects},
        )
        rows.sort(key=lambda row: (row[11], row[0]))
        return [
            Claimed._make((run, token, Lane(queue, job, step), *counters, payload.encode()))
            for run, token, queue, job, step, *counters, _rank, payload in rows
        ]

    async def finish(self, rows: Sequence[Finish], spawned: list[dict[str, Any]]) -> set[str]:
        """Commit these and return the runs for which the fence held; the others are locked by somebody or lost."""
        ids, tokens, states, payloads, attempts, crashes, notes = zip(*rows, strict=True)
        parameters = {
            "ids": list(ids),
            "tokens": list(tokens),
            "states": list(states),
            "payloads": list(payloads),
            "attempts": list(attempts),
            "crashes": list(crashes),
            **self._attempt_arrays(notes),
            "spawned": orjson.dumps(spawned).decode(),
        }
        return {row[0] for row in await self._work.fetch("finish_runs", parameters)}

    async def continue_(self, rows: Sequence[Continue], spawned: list[dict[str, Any]]) -> set[str]:
        """Like finish, for runs that go on."""
        *columns, notes = zip(*rows, strict=True)
        parameters = {
            **{name: list(column) for name, column in zip(_CONTINUE_ARRAYS, columns, strict=True)},
            **self._attempt_arrays(notes),
            "spawned": orjson.dumps(spawned).decode(),
        }
        return {row[0] for row in await self._work.fetch("continue_runs", parameters)}

    def _attempt_arrays(self, notes: Iterable[Attempt]) -> dict[str, Any]:
        outcomes, errors, started, ended, pids, cpu_seconds, peak_rss = zip(*notes, strict=True)
        return {
            "outcomes": list(outcomes),
            "errors": list(errors),
            "started": list(started),
            "ended": list(ended),
            "pids": list(pids),
            "cpu_seconds": list(cpu_seconds),
            "peak_rss": list(peak_rss),
            "owner": self._owner,
            "host": self._host,
        }

    async def owned(self, runs: Sequence[str], *, on_leases: bool = False) -> set[tuple[str, int]]:
        """Which of these runs are still ours, with their tokens; asked on the connection that the caller uses."""
        session = self._leases if on_leases else self._work
        return set(await session.fetch("owned_runs", {"ids": list(runs), "owner": self._owner}))

    async def recorded(self, attempts: Sequence[tuple[str, int]]) -> set[tuple[str, int]]:
        ids, tokens = zip(*attempts, strict=True)
        return set(await self._work.fetch("recorded_attempts", {"ids": list(ids), "tokens": list(tokens)}))

    async def renew(self, renewals: Sequence[Renewal]) -> set[str]:
        """Extend leases; the runs not returned are locked by somebody or lost."""
        ids, tokens, leases, progress = zip(*renewals, strict=True)
        parameters = {
            "ids": list(ids),
            "tokens": list(tokens),
            "leases": list(leases),
            "progress": list(progress),
            "owner": self._owner,
        }
        return {row[0] for row in await self._leases.fetch("renew_leases", parameters)}

    async def release_unknown(self, known: Iterable[str]) -> None:
        await self._work.fetch("release_unknown", {"owner": self._owner, "known": list(known)})

    async def reap(self, limit: int) -> list[tuple[str, int, bool]]:
        """Take back expired runs: (run, token, quarantined) of each."""
        return [(run, token, dead) for run, token, dead in await self._work.fetch("reap_runs", {"limit": limit})]

    async def promote(self, limit: int) -> int:
        return len(await self._work.fetch("promote_runs", {"limit": limit}))

    async def seconds_until_due(self) -> float | None:
        rows = await self._work.fetch("seconds_until_due")
        seconds: float | None = rows[0][0]
        return seconds

    async def has_work(self, jobs: Iterable[str]) -> bool:
        rows = await self._work.fetch("has_work", {"jobs": list(jobs)})
        return bool(rows[0][0])

    async def register(self, *, pid: int, app: str, manifest_hash: str) -> None:
        label = {"host": self._host, "pid": pid, "app": app, "manifest_hash": manifest_hash}
        await self._work.fetch("register_supervisor", {"id": self._owner, **label})

    async def register_job(self, name: str, step: str, placement: Placement) -> None:
        await self._work.fetch("register_job", job_parameters(name, step, placement))

    async def set_idle(self, idle: bool) -> None:
        await self._work.fetch("set_idle", {"id": self._owner, "idle": idle})

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
    }
