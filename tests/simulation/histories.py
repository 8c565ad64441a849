"""Random operations on a store. Played with both stores, one seed must give the same observations."""

import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from simulation.app import JOBS, following_step
from simulation.scenarios import GREEN, RED, advanced, finished, tried, write
from simulation.subjects import Subject
from underway.definition.manifest import Lane, Policy, Step
from underway.definition.retry import RetryPolicy
from underway.postgres.supervisor_store import Claimed, Lanes, Renewal
from underway.postgres.transitions import AdvanceRun, Attempt, FinishRun
from underway.supervisor.tasks.task import from_claim
from underway.supervisor.tasks.verdict import Observation, decide

# In seconds, far from each other and from every sum of PASSING: how long the machine takes must change nothing.
LEASE, BACKOFF, DELAY = 1000.0, 100.0, 50.0
PASSING = (130.0, 130.0, 2000.0)
# Passes after each crash: a suspect waits only a few seconds.
AFTER_CRASH = 130.0
POLICY = Policy(
    retry=RetryPolicy(3, timedelta(seconds=BACKOFF), timedelta(seconds=BACKOFF), jitter=0.0),
    lease=timedelta(seconds=LEASE),
)
ENQUEUED = (("short", b"null"), ("chain", b"[1]"), ("keyed", RED), ("keyed", GREEN), ("swap", RED))
CHARGED = (Observation.RETRY, Observation.DIED, Observation.KILLED_SHUTDOWN, Observation.FAIL)


class History:
    """`observations` has an entry for each operation: its answer, then what can be seen of every run."""

    def __init__(self, subject: Subject, seed: int) -> None:
        self.observations: list[Any] = []
        self._subject = subject
        self._rng = random.Random(seed)
        self._runs: list[str] = []
        self._held: dict[str, list[Claimed]] = {"a": [], "b": []}
        self._written: list[Claimed] = []
        self._operations: list[Callable[[str], Awaitable[Any]]] = [
            *[self._enqueue] * 3,
            *[self._claim] * 4,
            *[self._write] * 4,
            *[self._promote] * 2,
            self._write_late,
            self._renew,
            self._reap,
            self._pass_time,
            self._cancel,
            self._release_unknown,
        ]

    async def play(self, operations: int) -> list[Any]:
        for _ in range(operations):
            operation, supervisor = self._rng.choice(self._operations), self._rng.choice("ab")
            answer = await operation(supervisor)
            seen = [(self._subject.view(run), self._subject.outcomes(run)) for run in self._runs]
            self.observations.append((operation.__name__, supervisor, answer, seen))
        return self.observations

    def _number(self, run: str) -> int:
        return self._runs.index(run)

    async def _enqueue(self, _: str) -> None:
        job, given = self._rng.choice(ENQUEUED)
        self._runs.append(self._subject.enqueue(job, given, self._rng.choice((0.0, 0.0, DELAY))))

    async def _claim(self, supervisor: str) -> Any:
        lanes = Lanes((Lane("default", job, step), POLICY) for job, steps in JOBS.items() for step in steps)
        tasks = self._rng.randint(1, 3)
        suspects = 0 if any(run.crashes for run in self._held[supervisor]) else 1
        claimed = await self._subject.store(supervisor).claim(lanes, tasks, candidates=tasks, suspects=suspects)
        self._held[supervisor] += claimed
        return [(self._number(run.run), run.lane.step, run.number, run.attempts, run.crashes) for run in claimed]

    async def _write(self, supervisor: str) -> Any:
        held = self._held[supervisor]
        if not held:
            return None
        run = held.pop(self._rng.randrange(len(held)))
        self._written.append(run)
        row = self._end_of(run)
        done = await write(self._subject.store(supervisor), row)
        await self._subject.pass_time(AFTER_CRASH)
        return self._number(run.run), run.token in done

    def _end_of(self, run: Claimed) -> AdvanceRun | FinishRun:
        if self._rng.random() < 0.5:
            last = following_step(run.lane.job, run.lane.step) is None
            return finished(run) if last else advanced(run, self._rng.choice((0.0, DELAY)))
        seen = self._rng.choice((*CHARGED, Observation.CANCELLED))
        attempt = tried("failed") if self._rng.random() < 0.8 else Attempt("released")
        task = from_claim(run, Step(run.lane.step, policy=POLICY), 0.0)
        return decide(task, seen, attempt, random.Random(1))

    async def _write_late(self, supervisor: str) -> Any:
        """Write an attempt that was written before, by either supervisor."""
        if not self._written:
            return None
        run = self._rng.choice(self._written)
        return await write(self._subject.store(supervisor), finished(run)) == set()

    async def _promote(self, supervisor: str) -> Any:
        store = self._subject.store(supervisor)
        return await store.promote(100), await store.join_key_queue(100)

    async def _renew(self, supervisor: str) -> Any:
        renewals = [Renewal(run.run, run.token, LEASE, None) for run in self._held[supervisor]]
        if not renewals:
            return None
        return sorted(map(self._number, await self._subject.store(supervisor).renew(renewals)))

    async def _reap(self, supervisor: str) -> Any:
        reaped = await self._subject.store(supervisor).reap(100)
        await self._subject.pass_time(AFTER_CRASH)
        return sorted((self._number(run), final) for run, _, final in reaped)

    async def _pass_time(self, _: str) -> None:
        await self._subject.pass_time(self._rng.choice(PASSING))

    async def _cancel(self, supervisor: str) -> Any:
        if self._runs:
            self._subject.cancel(self._rng.choice(self._runs))
        requests = await self._subject.store(supervisor).cancel_requests()
        return sorted((self._number(run), attempts, crashes) for run, _, attempts, crashes in requests)

    async def _release_unknown(self, supervisor: str) -> None:
        """Forget a task, as if the answer of its claim had been lost."""
        held = self._held[supervisor]
        if held:
            self._written.append(held.pop())
        await self._subject.store(supervisor).release_unknown({run.run for run in held})
