"""Random sequences of what supervisors and clients do to runs, compared with a small model.

Two supervisors share a database; each may be late, forget, or lose its leases. Hypothesis looks for an order of
events after which tables and model differ.
"""

import asyncio
import random
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, ClassVar, NamedTuple, TypeVar
from uuid import UUID, uuid4

import psycopg
from db import Connection, ago
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from underway.definition import manifest
from underway.definition.manifest import Lane, Placement, Policy
from underway.definition.retry import RetryPolicy
from underway.ids import new_id
from underway.postgres import client_queries
from underway.postgres.reconnecting import ReconnectingConnection
from underway.postgres.supervisor_store import Lanes, Renewal, Store
from underway.postgres.transitions import AdvanceRun, Attempt, FinishRun, succeed
from underway.supervisor.tasks.task import Task, from_claim
from underway.supervisor.tasks.verdict import VERDICTS, Charge, Observation, decide
from underway.wire.messages import NextStep

T = TypeVar("T")

STEPS = ("one", "two", "three")
MAX_ATTEMPTS, MAX_CRASHES = 3, 2
# Long enough that no run becomes due by itself during an example.
HOUR = timedelta(hours=1)
POLICY = Policy(
    retry=RetryPolicy(max_attempts=MAX_ATTEMPTS, initial_interval=HOUR, max_interval=HOUR), max_crashes=MAX_CRASHES
)
LANES = Lanes((Lane("default", "job", step), POLICY) for step in STEPS)
OWNERS = (uuid4(), uuid4())

# To the model, each observation that is left out is the same as one of these.
UNSUCCESSFUL = (
    Observation.RETRY,
    Observation.FAIL,
    Observation.KILLED_TIMEOUT,
    Observation.DIED,
    Observation.KILLED_SHUTDOWN,
    Observation.NEVER_STARTED,
)
ENDINGS = st.sampled_from((Observation.NEXT, Observation.DONE, *UNSUCCESSFUL, Observation.NEXT))
picks = st.integers(min_value=0, max_value=10_000)


class Key(NamedTuple):
    """What a supervisor must present to write a run."""

    owner: UUID
    run: str
    token: int


@dataclass
class ModelRun:
    id: str
    state: str
    step: int = 0
    input: int = 0
    number: int = 0
    attempts: int = 0
    crashes: int = 0
    releases: int = 0
    token: int = 0
    owner: UUID | None = None
    cancel_requested: bool = False
    recorded: list[tuple[str, int, str]] = field(default_factory=list)

    def live_row(self) -> tuple[Any, ...]:
        owner = self.owner and str(self.owner)
        counters = (self.number, self.attempts, self.crashes, self.releases)
        return (self.state, STEPS[self.step], self.input, *counters, self.token, owner)

    def finished_row(self) -> tuple[Any, ...]:
        succeeded = self.state == "succeeded"
        kept = (None, True) if succeeded else (self.input, False)
        return (self.state, STEPS[self.step], *kept, self.attempts, self.crashes, self.releases)

    @property
    def finished(self) -> bool:
        return self.state in ("succeeded", "failed", "cancelled")

    def record(self, outcome: str) -> None:
        self.number += 1
        self.recorded.append((STEPS[self.step], self.number, outcome))

    def end(self, observation: Observation) -> None:
        """Promise 7, implemented independently."""
        self.owner = None
        if self.cancel_requested:
            observation = Observation.CANCELLED
        outcome, charge = VERDICTS[observation]
        if observation is not Observation.NEVER_STARTED:
            self.record(outcome)
        if observation is Observation.DONE:
            self.state = "succeeded"
        elif observation is Observation.NEXT:
            self.state = "pending"
            self.step += 1
            self.input += 1
            self.number = self.attempts = self.crashes = self.releases = 0
        elif observation is Observation.CANCELLED:
            self.state = "cancelled"
        elif charge is Charge.RELEASE:
            self.state = "pending"
            self.releases += 1
        elif charge is Charge.CRASH:
            self.crash()
        else:
            self.attempts += 1
            used_up = charge is Charge.FAILURE or self.attempts >= MAX_ATTEMPTS
            self.state = "failed" if used_up else "waiting"

    def crash(self) -> None:
        self.owner = None
        self.crashes += 1
        self.state = "failed" if self.crashes >= MAX_CRASHES else "waiting"


class World:
    """The database, and one event loop for all examples."""

    def __init__(self, database: str, connection: Connection, runner: asyncio.Runner) -> None:
        self.connection = connection
        self.runner = runner
        self.session = ReconnectingConnection(database)
        self.stores = {owner: Store(self.session, self.session, owner, "testhost") for owner in OWNERS}

    def run(self, steps: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(steps)


class RunMachine(RuleBasedStateMachine):
    world: ClassVar[World]

    def __init__(self) -> None:
        super().__init__()
        self.world.connection.execute("truncate underway.run, underway.finished_run, underway.attempt")
        self.model: dict[str, ModelRun] = {}
        self.held: dict[Key, Task] = {}
        self.stale: list[tuple[Key, Task]] = []
        self.newest_token = 0

    # Clients

    # Few runs, so that many events happen to each.
    @precondition(lambda self: sum(not run.finished for run in self.model.values()) < 3)
    @rule(delayed=st.booleans(), priority=st.integers(-2, 2))
    def enqueue(self, delayed: bool, priority: int) -> None:
        run = new_id()
        placement = Placement(priority=priority, delay=HOUR if delayed else timedelta(0))
        client_queries.insert_run(self.world.connection, run, "job", STEPS[0], placement, b"0")
        self.model[str(run)] = ModelRun(str(run), "waiting" if delayed else "pending")

    @precondition(lambda self: len(self.model) > 2)
    @rule(pick=picks, rarely=st.sampled_from([*[False] * 7, True]))
    def cancel(self, pick: int, rarely: bool) -> None:
        if not rarely:
            return
        run = list(self.model.values())[pick % len(self.model)]
        possible = not run.finished and not run.cancel_requested
        assert client_queries.cancel(self.world.connection, UUID(run.id)) == possible
        if run.state in ("pending", "waiting"):
            run.state = "cancelled"
        elif possible:
            run.cancel_requested = True

    # Supervisors

    @precondition(lambda self: any(run.state == "pending" for run in self.model.values()))
    @rule(owner=st.sampled_from(OWNERS), tasks=st.integers(1, 4), suspects=st.integers(0, 1))
    def claim(self, owner: UUID, tasks: int, suspects: int) -> None:
        pending = [run for run in self.model.values() if run.state == "pending"]
        suspicious = sum(run.crashes > 0 for run in pending)
        expected = min(tasks, len(pending) - suspicious + min(suspects, suspicious))
        claimed = self.world.run(self.world.stores[owner].claim(LANES, tasks, candidates=tasks, suspects=suspects))
        assert len(claimed) == expected
        assert sum(one.crashes > 0 for one in claimed) <= suspects
        for token in sorted(one.token for one in claimed):
            assert token > self.newest_token
            self.newest_token = token
        for one in claimed:
            run = self.model[one.run]
            assert run.state == "pending"
            run.state, run.owner, run.token = "in_progress", owner, one.token
            step = manifest.Step(one.lane.step, policy=POLICY)
            self.held[Key(owner, one.run, one.token)] = from_claim(one, step, 0.0)

    @precondition(lambda self: self.held)
    @rule(pick=picks, endings=st.lists(ENDINGS, min_size=1, max_size=3), late=st.booleans())
    def commit(self, pick: int, endings: list[Observation], late: bool) -> None:
        """One group commit of a supervisor, perhaps with an outcome that comes too late."""
        keys = list(self.held)
        owner = keys[pick % len(keys)].owner
        ended = dict(zip([key for key in keys if key.owner == owner], endings, strict=False))
        if refused := [
            self._row(self.held[key], observation) for key, observation in ended.items() if self._cancelled(key)
        ]:
            assert self._write(owner, refused) == set()
        rows = [
            self._row(self.held[key], Observation.CANCELLED if self._cancelled(key) else observation)
            for key, observation in ended.items()
        ]
        if late and self.stale:
            key, task = self.stale[pick % len(self.stale)]
            if key.run not in {row.run for row in rows}:
                rows.append(self._row(task, endings[-1]))
        expected = {key.token for key in ended}
        assert self._write(owner, rows) == expected
        for key, observation in ended.items():
            # The last step of a job has no next step.
            last = self.model[key.run].step == len(STEPS) - 1
            self.model[key.run].end(Observation.DONE if last and observation is Observation.NEXT else observation)
            self._mark_stale(key)

    @precondition(lambda self: self.held)
    @rule(owner=st.sampled_from(OWNERS))
    def renew(self, owner: UUID) -> None:
        owned = [key for key in self.held if key.owner == owner]
        if owned:
            renewals = [Renewal(key.run, key.token, 60.0, None) for key in owned]
            renewed = self.world.run(self.world.stores[owner].renew(renewals))
            assert renewed == {key.run for key in owned if not self._cancelled(key)}

    @precondition(lambda self: self.held)
    @rule(owner=st.sampled_from(OWNERS), remembered=st.integers(0, 2))
    def forget(self, owner: UUID, remembered: int) -> None:
        """The answer of a claim was lost: the supervisor releases the runs that it does not know."""
        owned = [key for key in self.held if key.owner == owner]
        self.world.run(self.world.stores[owner].release_unknown([key.run for key in owned[:remembered]]))
        for key in owned[remembered:]:
            if self._cancelled(key):
                continue
            self.model[key.run].end(Observation.NEVER_STARTED)
            self._mark_stale(key)

    @precondition(lambda self: self.held)
    @rule(picked=st.lists(picks, min_size=1, max_size=3), by=st.sampled_from(OWNERS))
    def expire_and_reap(self, picked: list[int], by: UUID) -> None:
        keys = list(self.held)
        expired = {keys[pick % len(keys)] for pick in picked}
        query = "update underway.run set lease_expires_at = now() - interval '1 s' where id = any(%s::uuid[])"
        self.world.connection.execute(query, [[key.run for key in expired]])
        reaped = self.world.run(self.world.stores[by].reap(100))
        for key in expired:
            run = self.model[key.run]
            if run.cancel_requested:
                run.end(Observation.CANCELLED)
            else:
                run.record("lost")
                run.crash()
            self._mark_stale(key)
        ends = {key: run.state if (run := self.model[key.run]).finished else None for key in expired}
        assert set(reaped) == {(key.run, key.token, end) for key, end in ends.items()}
        # A crash backs off for seconds only, and an example may take as long.
        self.world.connection.execute(
            "update underway.run set due_at = due_at + interval '1 hour' where state = 'waiting'"
        )

    @precondition(lambda self: self.waiting())
    @rule(picked=st.lists(picks, min_size=1, max_size=3))
    def promote(self, picked: list[int]) -> None:
        waiting = self.waiting()
        due = {waiting[pick % len(waiting)].id for pick in picked}
        query = "update underway.run set due_at = now() - interval '1 s' where id = any(%s::uuid[])"
        self.world.connection.execute(query, [list(due)])
        assert self.world.run(self.world.stores[OWNERS[0]].promote(100)) == len(due)
        for run in due:
            self.model[run].state = "pending"

    def waiting(self) -> list[ModelRun]:
        return [run for run in self.model.values() if run.state == "waiting"]

    # Writes that must have no effect

    @precondition(lambda self: self.stale)
    @rule(pick=picks, observation=ENDINGS)
    def write_late(self, pick: int, observation: Observation) -> None:
        key, task = self.stale[pick % len(self.stale)]
        assert self._write(key.owner, [self._row(task, observation)]) == set()
        store = self.world.stores[key.owner]
        assert self.world.run(store.renew([Renewal(key.run, key.token, 60.0, '"late"')])) == set()

    @precondition(lambda self: len(self.held) > 1)
    @rule(owner=st.sampled_from(OWNERS), observation=ENDINGS)
    def write_with_swapped_tokens(self, owner: UUID, observation: Observation) -> None:
        tasks = [task for key, task in self.held.items() if key.owner == owner]
        if len(tasks) > 1:
            rows = [self._row(task, observation) for task in tasks]
            tokens = [row.token for row in rows]
            swapped = [row._replace(token=token) for row, token in zip(rows, tokens[1:] + tokens[:1], strict=True)]
            assert self._write(owner, swapped) == set()

    @precondition(lambda self: self.held)
    @rule(pick=picks, observation=ENDINGS)
    def write_as_another_supervisor(self, pick: int, observation: Observation) -> None:
        key = list(self.held)[pick % len(self.held)]
        (other,) = set(OWNERS) - {key.owner}
        assert self._write(other, [self._row(self.held[key], observation)]) == set()

    # Invariants

    @invariant()
    def tables_and_model_agree(self) -> None:
        live = self._rows(
            "select id::text, state, step, input, attempt_number, attempts, crashes, releases, token, owner::text "
            "from underway.run"
        )
        finished = self._rows(
            "select id::text, state, step, input, result is not null, attempts, crashes, releases "
            "from underway.finished_run"
        )
        assert not live.keys() & finished.keys()
        assert live == {run.id: run.live_row() for run in self.model.values() if not run.finished}
        assert finished == {run.id: run.finished_row() for run in self.model.values() if run.finished}
        attempts: dict[str, list[tuple[str, int, str]]] = {}
        rows = self.world.connection.execute(
            "select run_id::text, step, attempt_number, outcome from underway.attempt order by token"
        )
        for run, *attempt in rows:
            attempts.setdefault(run, []).append(tuple(attempt))
        assert attempts == {run.id: run.recorded for run in self.model.values() if run.recorded}

    @invariant()
    def attempts_at_a_step_are_numbered_without_gaps(self) -> None:
        gaps = self.world.connection.execute(
            "select run_id, step from ("
            "  select *, row_number() over (partition by run_id, step order by token) as expected from underway.attempt"
            ") a where attempt_number <> expected"
        )
        assert gaps.fetchall() == []

    @invariant()
    def only_runs_in_progress_have_an_owner_and_a_lease(self) -> None:
        inconsistent = self.world.connection.execute(
            "select id, state from underway.run "
            "where num_nonnulls(owner, lease_expires_at) <> case state when 'in_progress' then 2 else 0 end"
        )
        assert inconsistent.fetchall() == []

    def _rows(self, query: str) -> dict[str, tuple[Any, ...]]:
        return {row[0]: row[1:] for row in self.world.connection.execute(query)}

    def _cancelled(self, key: Key) -> bool:
        return self.model[key.run].cancel_requested

    def _row(self, task: Task, observation: Observation) -> FinishRun | AdvanceRun:
        started = None if observation is Observation.NEVER_STARTED else ago(0.5)
        attempt = Attempt(VERDICTS[observation].outcome, error="what happened", started=started)
        index = STEPS.index(task.lane.step)
        if observation in (Observation.NEXT, Observation.DONE):
            following = None
            if observation is Observation.NEXT and index + 1 < len(STEPS):
                following = NextStep(STEPS[index + 1], "default", 0, 0.0, 60.0)
            return succeed(task, attempt, following, b"%d" % (int(task.input) + 1))
        row = decide(task, observation, attempt, random.Random(0))
        if isinstance(row, AdvanceRun) and row.delay:
            return row._replace(delay=HOUR.total_seconds())
        return row

    def _write(self, owner: UUID, rows: list[FinishRun | AdvanceRun]) -> set[int]:
        store = self.world.stores[owner]
        written: set[int] = set()
        if finishing := [row for row in rows if isinstance(row, FinishRun)]:
            written |= self.world.run(store.finish(finishing, []))
        if continuing := [row for row in rows if isinstance(row, AdvanceRun)]:
            written |= self.world.run(store.continue_(continuing, [])).keys()
        return written

    def _mark_stale(self, key: Key) -> None:
        self.stale.append((key, self.held.pop(key)))


def test_runs_follow_the_model(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection, asyncio.Runner() as runner:
        RunMachine.world = World(database, connection, runner)
        try:
            run_state_machine_as_test(
                RunMachine,
                settings=settings(
                    max_examples=35, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
                ),
            )
        finally:
            runner.run(RunMachine.world.session.close())
