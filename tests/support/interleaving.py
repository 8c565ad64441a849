"""Two sessions, each with one of our statements, and a third session that stops the first one in the middle.

There are three rows of each kind. Their orders by ID, rank, time, key and position in the table all differ, so
statements lock them in different orders, unless they specify one.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import Any, NamedTuple
from uuid import uuid4

import psycopg
from db import LANE, Connection, insert, insert_held, next_token, value
from psycopg.conninfo import make_conninfo

from underway.postgres.reconnecting import ReconnectingConnection
from underway.postgres.step_transaction import StepTransactions
from underway.postgres.supervisor_store import Store

US, OTHERS = uuid4(), uuid4()
TABLES = ("run", "finished_run", "attempt", "queue", "job", "schedule", "supervisor", "stop_request")
AGO = "clock_timestamp() - interval '1 hour' + {} * interval '1 second'"
# The position of each of the three rows in the table, by key, and in time.
IN_TABLE, BY_KEY, IN_TIME = (2, 0, 1), (1, 2, 0), (2, 1, 0)
# A statement that takes longer than this is stuck. Postgres finds deadlocks much earlier.
LOCK_SECONDS = 5


class World:
    """The rows on which statements meet, created anew for each interleaving. `held` are the runs that we own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.held: list[tuple[str, int]] = []
        self.runs: dict[str, list[str]] = {}
        self._fill()
        columns = "select string_agg(attname, ', ') from pg_attribute where attrelid = %s::regclass and attnum > 0"
        columns += " and not attisdropped and attgenerated = ''"
        statements = []
        for table in TABLES:
            connection.execute(f"create table world_{table} as table underway.{table}")
            written = value(connection, columns, [f"underway.{table}"])
            statements.append(f"delete from underway.{table}")
            statements.append(f"insert into underway.{table} ({written}) select {written} from world_{table}")
        self._reset = ";".join(statements)

    def reset(self) -> None:
        self._connection.execute(self._reset)

    def _fill(self) -> None:
        connection = self._connection
        for name in ("default", "other"):
            connection.execute("insert into underway.queue (name) values (%s)", [name])
        for supervisor in (US, OTHERS):
            connection.execute(
                "insert into underway.supervisor (id, host, pid, app, idle) values (%s, '', 1, '', true)",
                [supervisor],
            )
        connection.execute(
            "insert into underway.schedule (job, name, cron, zone, input, next_at)"
            " select 'job', 'schedule ' || n, '* * * * *', 'UTC', 'null', now() - interval '1 minute'"
            " from generate_series(1, 3) n"
        )
        line = {"concurrency_key": "key", "concurrency_limit": 4}
        kinds: dict[str, dict[str, Any]] = {
            "pending": {"state": "pending"},
            "due_at": {"state": "waiting"},
            "in line": {"state": "waiting", **line},
            "running": {"state": "in_progress", "owner": US, "holds_key": True, **line},
            "lapsed": {"state": "in_progress", "owner": OTHERS, "lapsed": True},
            "failed": {"state": "pending"},
            "quarantined": {"state": "pending"},
            "succeeded": {"state": "pending"},
        }
        for kind, columns in kinds.items():
            ids = sorted(str(uuid4()) for _ in range(3))
            for n in IN_TABLE:
                self._put(kind, ids[n], n, dict(columns))
            self.runs[kind] = ids
        self._finish()

    def _put(self, kind: str, run: str, n: int, columns: dict[str, Any]) -> None:
        then = psycopg.sql.SQL(AGO.format(IN_TIME[n]))
        lapsed = columns.pop("lapsed", False)
        columns |= {"id": run, "unique_key": f"{kind} {BY_KEY[n]}", "due_at": then, "rank": then}
        if columns["state"] == "in_progress":
            columns |= {"lease_expires_at": then} if lapsed else {}
            run, token = insert_held(self._connection, by=columns.pop("owner"), **columns)
            if kind == "running":
                self.held.append((run, token))
        else:
            insert(self._connection, **columns)

    def _finish(self) -> None:
        """Insert the last kinds of rows, all expired, with an attempt each."""
        for kind in ("failed", "quarantined", "succeeded"):
            for n in IN_TABLE:
                run = self.runs[kind][n]
                self._connection.execute("select underway.cancel(%s)", [run])
                self._connection.execute(
                    "insert into underway.attempt (run_id, token, attempt_number, finished_at, step, outcome)"
                    " values (%s, %s, 1, now(), 'step', 'failed')",
                    [run, next_token(self._connection)],
                )
                self._connection.execute(
                    "update underway.finished_run set state = %s, quarantined = %s, dead_letter = %s,"
                    " finished_at = finished_at - %s * interval '1 minute', expires_at = now() - interval '1 minute'"
                    " where id = %s",
                    ["succeeded" if kind == "succeeded" else "failed", kind == "quarantined",
                     "dead" if kind == "failed" else None, IN_TIME[n], run],
                )  # fmt: skip

    def points(self) -> dict[str, tuple[str, list[Any]]]:
        """The points at which the third session can stop a statement: each row, and keys that do not exist yet."""
        found: dict[str, tuple[str, list[Any]]] = {}
        for kind, ids in self.runs.items():
            table = "finished_run" if kind in ("failed", "quarantined", "succeeded") else "run"
            for n, run in enumerate(ids):
                found[f"{kind} {n}"] = (f"select from underway.{table} where id = %s for update", [run])
                if table == "finished_run":
                    found[f"attempt of {kind} {n}"] = (
                        "select from underway.attempt where run_id = %s for update",
                        [run],
                    )
        for table, key in (("queue", "name"), ("job", "name"), ("schedule", "name"), ("supervisor", "id")):
            rows = self._connection.execute(f"select {key} from underway.{table} order by 1").fetchall()
            for n, (row,) in enumerate(rows):
                found[f"{table} {n}"] = (f"select from underway.{table} where {key} = %s for update", [row])
        new_run = (
            "insert into underway.run (id, job, step, queue, state, keep, due_at, rank, unique_key, input)"
            " values (%s, %s, %s, %s, 'pending', '1 day', now(), now(), %s, 'null')"
        )
        for kind in ("failed", "quarantined", "new"):
            for n in range(3):
                found[f"key {kind} {n}"] = (new_run, [uuid4(), LANE.job, LANE.step, LANE.queue, f"{kind} {n}"])
        for n, supervisor in enumerate((US, OTHERS)):
            found[f"stop request {n}"] = ("insert into underway.stop_request values (%s)", [supervisor])
        return found


class Side:
    """A supervisor, a step and a client, each with a session. One of them at a time sends a statement."""

    def __init__(self, url: str) -> None:
        url = make_conninfo(url, options=f"-c deadlock_timeout=30 -c lock_timeout={LOCK_SECONDS}s")
        self._thread = ThreadPoolExecutor(1)
        self.world: World
        self.runner: asyncio.Runner
        self.work, self.leases = ReconnectingConnection(url), ReconnectingConnection(url)
        self.store = Store(self.work, self.leases, US, "testhost")
        self.client = psycopg.connect(url)
        self.own = StepTransactions(url, US, "testhost")
        self._doing: Future[Any] | None = None
        self.pids = self._thread.submit(self._open).result()

    def _open(self) -> list[int]:
        self.runner = asyncio.Runner()
        pids = [self.runner.run(session.open()).info.backend_pid for session in (self.work, self.leases)]
        return [*pids, self.client.info.backend_pid, self.own.begin(0).info.backend_pid]

    def await_(self, asked: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(asked)

    def begin(self, act: Callable[["Side"], Any]) -> None:
        self._doing = self._thread.submit(act, self)

    @property
    def done(self) -> bool:
        assert self._doing is not None
        return self._doing.done()

    def end(self) -> BaseException | None:
        """Commit open transactions, and return what was wrong."""
        assert self._doing is not None
        error = self._doing.exception()
        return self._thread.submit(self._commit).exception() or error

    def _commit(self) -> None:
        with suppress(psycopg.errors.InFailedSqlTransaction):
            self.client.commit()
        connection = self.own._connection
        assert connection is not None
        psycopg.Connection.commit(connection)
        self.own.begin(0)

    def close(self) -> None:
        def all_of_it() -> None:
            for session in (self.work, self.leases):
                self.runner.run(session.close())
            self.runner.close()
            self.own.close()
            self.client.close()

        self._thread.submit(all_of_it).result()
        self._thread.shutdown()


class Statement(NamedTuple):
    """`held`: it runs in a transaction of its caller, which may stay open for any time."""

    name: str
    act: Callable[[Side], Any]
    held: bool = False


class Interleaving(AbstractContextManager["Interleaving"]):
    """`meet` stops a first statement at a point, sends a second one, and lets both continue."""

    def __init__(self, url: str, connection: Connection) -> None:
        self._connection = connection
        self.world = World(connection)
        self.points = self.world.points()
        self._stranger = psycopg.connect(url)
        self.first, self.second = Side(url), Side(url)
        self.first.world = self.second.world = self.world
        self.met = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stranger.close()
        self.first.close()
        self.second.close()

    def stops(self, first: Statement, point: str) -> bool:
        """Whether this statement waits at the point."""
        self.world.reset()
        return self._meet(first, None, point)[1]

    def meet(self, first: Statement, second: Statement, point: str | None = None) -> tuple[list[BaseException], bool]:
        """The errors of both statements, and whether the second one had to wait."""
        self.met += 1
        self.world.reset()
        return self._meet(first, second, point)

    def _meet(self, first: Statement, second: Statement | None, point: str | None) -> tuple[list[BaseException], bool]:
        if point is not None:
            self._stranger.execute(*self.points[point])
        self.first.begin(first.act)
        waits = self._waits(self.first)
        sides = [self.first]
        if second is not None:
            self.second.begin(second.act)
            waits = self._waits(self.second)
            sides.append(self.second)
        self._stranger.rollback()
        errors = []
        while sides:
            for side in [side for side in sides if side.done]:
                sides.remove(side)
                errors.append(side.end())
            time.sleep(0.0002)
        return [error for error in errors if error is not None], waits

    def _waits(self, side: Side) -> bool:
        while not side.done:
            if value(
                self._connection, "select count(*) from pg_locks where not granted and pid = any(%s)", [side.pids]
            ):
                return not side.done
        return False
