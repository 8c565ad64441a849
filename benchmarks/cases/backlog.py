"""What a claim costs beside all that gathers around it, and beside nothing."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from benchmarks import rows
from benchmarks.cases.setting import Setting
from benchmarks.engine import Engine, engine
from benchmarks.model import OURS, Row
from benchmarks.stage import Stage
from underway.postgres import migrate

_BATCH = 50
_EMPTY = "on an empty table"
_AT_START = "when it was taken"
_GOAL = 1.3


class Turn(NamedTuple):
    """Milliseconds of a claim, and of the commit of what it took."""

    claim: float
    commit: float


@dataclass
class Table:
    """A database of its own on the same server, so that a loaded one and an empty one are measured in turn.

    `connection` is for all that is not measured.
    """

    url: str
    connection: psycopg.Connection[Any]
    engine: Engine

    def turn(self) -> Turn:
        """Claim, commit, and put as many new runs at the end of the line: as many are pending as before."""
        turn = self.engine.run(self._turn())
        rows.add(self.connection, _BATCH)
        return turn

    async def _turn(self) -> Turn:
        began = time.perf_counter()
        claimed = await self.engine.claim_on(_BATCH)
        between = time.perf_counter()
        await self.engine.finish(claimed)
        ended = time.perf_counter()
        if len(claimed) != _BATCH:
            raise AssertionError(f"a claim took {len(claimed)} of {_BATCH}: this measurement is worth nothing")
        return Turn((between - began) * 1000, (ended - between) * 1000)

    def turns(self, count: int) -> Turn:
        return _medians([self.turn() for _ in range(count)])

    def settle(self) -> None:
        """What autovacuum and the checkpointer would otherwise do in the middle of a measurement."""
        self.connection.execute("vacuum (analyze) underway.run, underway.finished_run, underway.attempt")
        self.connection.execute("checkpoint")


def run(setting: Setting) -> list[Row]:
    with _table(setting.stage, "backlog_empty") as empty, _table(setting.stage, "backlog_loaded") as loaded:
        empty.turns(10)
        return Backlog(setting, empty, loaded).measured()


class Backlog:
    """The loaded table grows from one row of the report to the next."""

    def __init__(self, setting: Setting, empty: Table, loaded: Table) -> None:
        self._setting = setting
        self._size = setting.sizes.backlog
        self._empty = empty
        self._loaded = loaded

    def measured(self) -> list[Row]:
        pending = f"{_short(self._size)} pending"
        # Autovacuum would analyse it while we are still loading.
        self._loaded.connection.execute("alter table underway.run set (autovacuum_enabled = off)")
        self._load(rows.PENDING, self._size, pending)
        found = [self._claims(f"{_short(self._size)}, not analysed")]
        self._loaded.connection.execute("alter table underway.run reset (autovacuum_enabled)")
        self._loaded.settle()
        found.append(self._claims(pending))
        for kind, statement, count in (
            ("delayed", rows.DELAYED, self._size),
            ("finished", rows.FINISHED, 10 * self._size),
            ("not served", rows.UNSERVED, 3 * self._size // 10),
        ):
            what = f"{_short(count)} {kind}"
            self._load(statement, count, what)
            self._loaded.settle()
            found.append(self._claims(f"+ {what}"))
        return [*found, self._commits("all of that"), self._snapshot()]

    def _load(self, statement: rows.Rows, count: int, what: str) -> None:
        rows.load(self._loaded.connection, statement, count, lambda text: self._setting.pairs.say(f"{what}: {text}"))

    def _claims(self, what: str) -> Row:
        samples = self._pairs(what, lambda turn: turn.claim)
        return Row(f"claim: {what}", "ms", samples, lower_is_better=True, goal=_GOAL, judged_by=_EMPTY)

    def _commits(self, what: str) -> Row:
        return Row(f"commit: {what}", "ms", self._pairs(what, lambda turn: turn.commit), lower_is_better=True)

    def _pairs(self, what: str, part: Callable[[Turn], float]) -> dict[str, list[float]]:
        count = self._setting.sizes.claims
        return self._setting.pairs.alternate(
            {OURS: lambda: part(self._loaded.turns(count)), _EMPTY: lambda: part(self._empty.turns(count))},
            f"{what}, ",
        )

    def _snapshot(self) -> Row:
        """Nothing dead can be removed while somebody looks at the past: a dump, a report, a forgotten transaction."""
        count, seconds = self._setting.sizes.claims, self._setting.sizes.snapshot_seconds
        empty = self._setting.pairs.watched(lambda: self._empty.turns(count))
        with psycopg.connect(self._loaded.url) as other:
            other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            other.execute("select")
            self._setting.pairs.say(f"a snapshot held for {seconds:.0f} s")
            turns = self._setting.pairs.watched(lambda: _turns_for(seconds, self._loaded.turn))
        # What is dead shows within a second, so the start is short.
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
def _table(stage: Stage, name: str) -> Iterator[Table]:
    stage.cluster.create_database(name)
    url = stage.cluster.url(name)
    try:
        with psycopg.connect(url, autocommit=True) as connection, engine(url) as opened:
            migrate.migrate(connection)
            rows.add(connection, _BATCH)
            yield Table(url, connection, opened)
    finally:
        with psycopg.connect(stage.cluster.url("postgres"), autocommit=True) as connection:
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
