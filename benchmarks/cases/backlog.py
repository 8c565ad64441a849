"""The cost of a claim in a table full of other runs, and in an empty one."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from benchmarks import seed
from benchmarks.cases.context import CaseContext
from benchmarks.engine import Engine, engine
from benchmarks.model import OURS, Row
from benchmarks.testbed import Testbed
from underway.postgres import migrate

_BATCH = 50
_EMPTY = "on an empty table"
_AT_START = "when it was taken"
_GOAL = 1.3


class Turn(NamedTuple):
    """Milliseconds of a claim, and of committing the claimed runs."""

    claim: float
    commit: float


@dataclass
class Table:
    """One database of the server, so that a loaded and an empty one can be measured in turn.

    `connection` is for everything that is not measured.
    """

    url: str
    connection: psycopg.Connection[Any]
    engine: Engine

    def turn(self) -> Turn:
        """Claim, commit, and add the same number of new runs, so that the backlog stays constant."""
        turn = self.engine.run(self._turn())
        seed.add_pending(self.connection, _BATCH)
        return turn

    async def _turn(self) -> Turn:
        began = time.perf_counter()
        claimed = await self.engine.claim_like_supervisor(_BATCH)
        between = time.perf_counter()
        await self.engine.finish(claimed)
        ended = time.perf_counter()
        if len(claimed) != _BATCH:
            raise AssertionError(f"a claim returned only {len(claimed)} of {_BATCH} runs: the measurement is invalid")
        return Turn((between - began) * 1000, (ended - between) * 1000)

    def turns(self, count: int) -> Turn:
        return _medians([self.turn() for _ in range(count)])

    def vacuum(self) -> None:
        """Do what autovacuum and the checkpointer would otherwise do during a measurement."""
        self.connection.execute("vacuum (analyze) underway.run, underway.finished_run, underway.attempt")
        self.connection.execute("checkpoint")


def run(context: CaseContext) -> list[Row]:
    with _table(context.testbed, "backlog_empty") as empty, _table(context.testbed, "backlog_loaded") as loaded:
        empty.turns(10)
        return BacklogCase(context, empty, loaded).measure()


class BacklogCase:
    """Loads more rows from one row of the report to the next."""

    def __init__(self, context: CaseContext, empty: Table, loaded: Table) -> None:
        self._context = context
        self._size = context.sizes.backlog
        self._empty = empty
        self._loaded = loaded

    def measure(self) -> list[Row]:
        pending = f"{_short(self._size)} pending"
        # Autovacuum would analyse the table while it is still being loaded.
        self._loaded.connection.execute("alter table underway.run set (autovacuum_enabled = off)")
        self._load(seed.PENDING, self._size, pending)
        report = [self._claims(f"{_short(self._size)}, not analysed")]
        self._loaded.connection.execute("alter table underway.run reset (autovacuum_enabled)")
        self._loaded.vacuum()
        report.append(self._claims(pending))
        for kind, statement, count in (
            ("delayed", seed.DELAYED, self._size),
            ("finished", seed.FINISHED, 10 * self._size),
            ("not served", seed.UNSERVED, 3 * self._size // 10),
        ):
            what = f"{_short(count)} {kind}"
            self._load(statement, count, what)
            self._loaded.vacuum()
            report.append(self._claims(f"+ {what}"))
        return [*report, self._commits("all of that"), self._snapshot()]

    def _load(self, statement: seed.InsertStatement, count: int, what: str) -> None:
        seed.load(
            self._loaded.connection,
            statement,
            count,
            lambda text: self._context.sampler.show_progress(f"{what}: {text}"),
        )

    def _claims(self, what: str) -> Row:
        samples = self._pairs(what, lambda turn: turn.claim)
        return Row(f"claim: {what}", "ms", samples, lower_is_better=True, goal=_GOAL, judged_by=_EMPTY)

    def _commits(self, what: str) -> Row:
        return Row(f"commit: {what}", "ms", self._pairs(what, lambda turn: turn.commit), lower_is_better=True)

    def _pairs(self, what: str, part: Callable[[Turn], float]) -> dict[str, list[float]]:
        count = self._context.sizes.claims
        return self._context.sampler.alternate(
            {OURS: lambda: part(self._loaded.turns(count)), _EMPTY: lambda: part(self._empty.turns(count))},
            f"{what}, ",
        )

    def _snapshot(self) -> Row:
        """No dead row can be removed while a snapshot is held, by a dump, a report or a forgotten transaction."""
        count, seconds = self._context.sizes.claims, self._context.sizes.snapshot_seconds
        empty = self._context.sampler.sample_once(lambda: self._empty.turns(count))
        with psycopg.connect(self._loaded.url) as other:
            other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            other.execute("select")
            self._context.sampler.show_progress(f"a snapshot held for {seconds:.0f} s")
            turns = self._context.sampler.sample_once(lambda: _turns_for(seconds, self._loaded.turn))
        # Dead rows have an effect within a second, so only the first few turns count as the start.
        start, end = _medians(turns[: -(-count // 10)]), _medians(turns[-count:])
        return Row(
            f"claim: + snapshot held {seconds:.0f} s",
            "ms",
            {OURS: [end.claim], _AT_START: [start.claim], _EMPTY: [empty.claim]},
            lower_is_better=True,
            goal=_GOAL,
            judged_by=_EMPTY,
            notes={
                "turns": len(turns),
                "runs_a_second": round(_BATCH * len(turns) / seconds),
                "commit": {"start": start.commit, "end": end.commit, "empty": empty.commit},
                "claims": [round(_medians(part).claim, 3) for part in _parts(turns, 20)],
            },
        )


@contextmanager
def _table(testbed: Testbed, name: str) -> Iterator[Table]:
    testbed.cluster.create_database(name)
    url = testbed.cluster.url(name)
    try:
        with psycopg.connect(url, autocommit=True) as connection, engine(url) as opened:
            migrate.migrate(connection)
            seed.add_pending(connection, _BATCH)
            yield Table(url, connection, opened)
    finally:
        with psycopg.connect(testbed.cluster.url("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def _turns_for(seconds: float, turn: Callable[[], Turn]) -> list[Turn]:
    turns = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        turns.append(turn())
    return turns


def _medians(turns: list[Turn]) -> Turn:
    claims, commits = zip(*turns, strict=True)
    return Turn(median(claims), median(commits))


def _parts(turns: list[Turn], count: int) -> Iterator[list[Turn]]:
    size = -(-len(turns) // count)
    for first in range(0, len(turns), size):
        yield turns[first : first + size]


def _short(count: int) -> str:
    """1M, 300k."""
    for unit, size in (("M", 1_000_000), ("k", 1000)):
        if count >= size:
            return f"{count / size:g}{unit}"
    return str(count)
