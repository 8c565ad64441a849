"""The simulated store and the real one, behind the same few operations: the subjects of scenarios and histories."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, Protocol, TypeAlias
from uuid import UUID, uuid4

import psycopg

from simulation.app import LIMITS, first_step, key_of
from simulation.clockwork import simulated_time
from simulation.database import Database
from simulation.ledger import Ledger
from simulation.schedules import Schedules
from simulation.session import ReconnectingConnection as FakeConnection
from simulation.store import FakeStore
from underway.definition.manifest import Placement
from underway.ids import new_id
from underway.postgres import client_queries, temporary_database
from underway.postgres.client_queries import KeyedRun
from underway.postgres.reconnecting import ReconnectingConnection
from underway.postgres.supervisor_store import Store
from underway.postgres.transitions import Attempt

AnyStore: TypeAlias = FakeStore | Store
KEEP = timedelta(days=1)


class View(NamedTuple):
    """What can be seen of a run. All but the state is about live runs."""

    state: str
    step: str = ""
    input: bytes = b""
    number: int = 0
    attempts: int = 0
    crashes: int = 0
    releases: int = 0
    holds_key: bool = False
    cancel_requested: bool = False


class Subject(Protocol):
    """One of the two stores, with what clients, other sessions and time do to its database."""

    def store(self, supervisor: str) -> AnyStore: ...
    def enqueue(self, job: str, given: bytes = b"null", delay: float = 0.0) -> str: ...
    def child(self, token: int) -> dict[str, Any]: ...
    def cancel(self, run: str) -> None: ...
    def view(self, run: str) -> View: ...
    def outcomes(self, run: str) -> list[str]: ...
    def row_locked(self, run: str) -> AbstractContextManager[None]: ...
    def key_locked(self, key: str) -> AbstractContextManager[None]: ...
    async def pass_time(self, seconds: float) -> None: ...


Scenario: TypeAlias = Callable[[Subject], Awaitable[Any]]


def _child(run: str, token: int) -> dict[str, Any]:
    """A run that the attempt with this token enqueues, as a commit names it."""
    place = {"queue": "default", "priority": 0, "keep": 60.0, "delay": 0.0}
    return {"id": run, "job": "short", "step": "a", "input": "null", "parent": token, **place}


# The simulation


class _Everything:
    def __contains__(self, _: object) -> bool:
        return True


class _Attempts(Ledger):
    """Records attempts without the checks that need simulated workers."""

    def ended(self, run: str, step: str, token: int, attempt: Attempt) -> None:
        if attempt.started is not None:
            self.attempts[run, token] = attempt.outcome

    def write(self, run: str, step: str, token: int, outcome: str) -> None:
        self.attempts[run, token] = outcome

    def released(self, token: int, how: str) -> None: ...


class FakeSubject:
    def __init__(self, database: Database) -> None:
        everything: Any = _Everything()
        self._database = database
        self._database.lossy = False
        self._database.ledger = _Attempts(database.loop)
        self._database.ledger.announced = everything
        self._schedules = Schedules(database)
        self._stores: dict[str, FakeStore] = {}
        self._everything = everything

    def store(self, supervisor: str) -> FakeStore:
        if supervisor not in self._stores:
            work, leases = (FakeConnection(self._database, self._schedules) for _ in range(2))
            store = self._stores[supervisor] = FakeStore(self._database, work, leases, uuid4())
            store.holds = lambda: self._everything
        return self._stores[supervisor]

    def enqueue(self, job: str, given: bytes = b"null", delay: float = 0.0) -> str:
        run = self._database.new_name()
        self._database.insert(run, job, first_step(job), given, delay)
        return run

    def child(self, token: int) -> dict[str, Any]:
        return _child(self._database.new_name(), token)

    def cancel(self, run: str) -> None:
        if run in self._database.live:
            self._database.cancel(run)

    def view(self, run: str) -> View:
        row = self._database.live.get(run)
        if row is None:
            return View(self._database.ledger.finished[run])
        counters = row.number, row.attempts, row.crashes, row.releases
        return View(row.state, row.lane.step, row.input, *counters, row.holds_key, row.cancel_requested)

    def outcomes(self, run: str) -> list[str]:
        attempts = self._database.ledger.attempts
        return [outcome for (of, _), outcome in sorted(attempts.items(), key=lambda item: item[0][1]) if of == run]

    @contextmanager
    def row_locked(self, run: str) -> Iterator[None]:
        row = self._database.live[run]
        row.locked_until = float("inf")
        yield
        row.locked_until = 0.0

    @contextmanager
    def key_locked(self, key: str) -> Iterator[None]:
        self._database.keys.lock(key, float("inf"))
        yield
        self._database.keys.lock(key, 0.0)

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def run_fake(scenario: Scenario, seed: int = 1) -> Any:
    with simulated_time(seed) as loop:
        asyncio.set_event_loop(loop)
        try:
            return loop.run_until_complete(scenario(FakeSubject(Database(loop))))
        finally:
            asyncio.set_event_loop(None)


# Postgres


class RealSubject:
    def __init__(self, url: str, connection: psycopg.Connection[Any]) -> None:
        self._url = url
        self._connection = connection
        self._stores: dict[str, Store] = {}
        self._connections: list[ReconnectingConnection] = []

    def store(self, supervisor: str) -> Store:
        if supervisor not in self._stores:
            work, leases = ReconnectingConnection(self._url), ReconnectingConnection(self._url)
            self._connections += work, leases
            self._stores[supervisor] = Store(work, leases, uuid4(), "testhost")
        return self._stores[supervisor]

    def enqueue(self, job: str, given: bytes = b"null", delay: float = 0.0) -> str:
        key = key_of(job, first_step(job), given)
        placement = Placement(
            delay=timedelta(seconds=delay), keep=KEEP, concurrency_limit=LIMITS.get(given, 1) if key else 1
        )
        row = KeyedRun(new_id(), given, None, key and key.text)
        client_queries.insert_keyed_runs(self._connection, [row], job, first_step(job), placement)
        return str(row.id)

    def child(self, token: int) -> dict[str, Any]:
        return _child(str(new_id()), token)

    def cancel(self, run: str) -> None:
        client_queries.cancel(self._connection, UUID(run))

    def view(self, run: str) -> View:
        query = (
            "select state, step, input::text, attempt_number, attempts, crashes, releases, holds_key, cancel_requested"
            " from underway.run where id = %s"
        )
        row = self._connection.execute(query, [run]).fetchone()
        if row is None:
            return View(str(client_queries.status(self._connection, UUID(run))))
        state, step, given, *rest = row
        return View(state, step, given.encode(), *rest)

    def outcomes(self, run: str) -> list[str]:
        query = "select outcome from underway.attempt where run_id = %s order by token"
        return [outcome for (outcome,) in self._connection.execute(query, [run])]

    def row_locked(self, run: str) -> AbstractContextManager[None]:
        return self._holding("select from underway.run where id = %s for update", run)

    def key_locked(self, key: str) -> AbstractContextManager[None]:
        return self._holding("select pg_advisory_xact_lock(hashtextextended('default' || chr(31) || %s, 0))", key)

    @contextmanager
    def _holding(self, lock: str, value: str) -> Iterator[None]:
        with psycopg.connect(self._url) as other:
            other.execute(lock.encode(), [value])
            yield

    async def pass_time(self, seconds: float) -> None:
        temporary_database.advance(self._connection, timedelta(seconds=seconds))

    async def close(self) -> None:
        for connection in self._connections:
            await connection.close()


def run_real(scenario: Scenario, url: str) -> Any:
    async def main() -> Any:
        with psycopg.connect(url, autocommit=True) as connection:
            subject = RealSubject(url, connection)
            try:
                return await scenario(subject)
            finally:
                await subject.close()

    return asyncio.run(main())
