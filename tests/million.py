"""A million runs in the tables of migration 1, and what is to be seen of their migration from outside."""

import statistics
import threading
import time
from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import psycopg
from db import Connection, value

HALF = 500_000
TABLES = ("run", "finished_run", "attempt", "job", "queue", "schedule", "supervisor")

# In lanes that nobody serves. Ids grow, as real ones do.
_FILLING = (
    """
    insert into underway.run (id, job, step, queue, keep, created_at, due, rank, state, input)
    select ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'job' || n %% 10, 'step', 'busy',
        interval '14 days', now(), now() + interval '1 day', now() + n * interval '1 ms',
        case when n %% 5 = 0 then 'waiting' else 'pending' end, jsonb_build_object('n', n, 'text', repeat('x', 100))
    from generate_series(1, %(half)s) n
    """,
    """
    insert into underway.finished_run (id, created_at, expires_at, keep, attempts, crashes, releases, priority, state,
        queue, job, step, error, result)
    select ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, now(), now() + interval '14 days',
        interval '14 days', 0, 0, 0, 0, case when n %% 20 = 0 then 'failed' else 'succeeded' end,
        'busy', 'job' || n %% 10, 'step', case when n %% 20 = 0 then 'ValueError: no' end,
        jsonb_build_object('n', n, 'text', repeat('x', 100))
    from generate_series(%(half)s + 1, 2 * %(half)s) n
    """,
    """
    insert into underway.attempt (run_id, token, number, started_at, finished_at, step, outcome)
    select id, nextval('underway.token'), 1, created_at, finished_at, step, state from underway.finished_run
    """,
)


def fill(connection: Connection) -> None:
    """Half of them live, four in five of those pending and one waiting; the others finished, an attempt each."""
    for statement in _FILLING:
        connection.execute(statement, {"half": HALF})
    connection.execute("vacuum analyze")


def files(connection: Connection) -> list[int]:
    """Where the tables are: elsewhere once they have been rewritten."""
    return [value(connection, f"select pg_relation_filenode('underway.{table}')::int8") for table in TABLES]


class Claim(NamedTuple):
    began: float
    ended: float
    runs: list[str]


class Latencies:
    """Milliseconds that the claims took which began between two instants."""

    def __init__(self, claims: Iterable[Claim], since: float, until: float) -> None:
        times = [(claim.ended - claim.began) * 1000 for claim in claims if since <= claim.began < until]
        self.count = len(times)
        self.p50 = statistics.median(times)
        self.p99 = statistics.quantiles(times, n=100, method="inclusive")[98]
        self.longest = max(times)

    def __str__(self) -> str:
        return f"{self.count} claims, p50 {self.p50:.1f} ms, p99 {self.p99:.1f} ms, longest {self.longest:.0f} ms"


class MigrationLock:
    """Looks all the time, in a thread, whether a migration waits for the table of live runs, or has it."""

    def __init__(self, database: str) -> None:
        self._database = database
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._seen: list[tuple[float, str]] = [(0.0, "neither")]

    def __enter__(self) -> "MigrationLock":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def state(self) -> str:
        """`waits`, `has` or `neither`."""
        return self._seen[-1][1]

    def longest(self, state: str) -> float:
        """The most seconds in one go."""
        stretches = [[at for at, _ in group] for seen, group in groupby(self._seen, itemgetter(1)) if seen == state]
        return max((stretch[-1] - stretch[0] for stretch in stretches), default=0.0)

    def _watch(self) -> None:
        look = (
            "select case when granted then 'has' else 'waits' end from pg_locks join pg_database d on d.oid = database"
            " where datname = current_database() and mode = 'AccessExclusiveLock' and relation = %s"
        )
        with psycopg.connect(self._database, autocommit=True) as connection:
            table = value(connection, "select 'underway.run'::regclass::int8")
            while not self._over.wait(0.005):
                row = connection.execute(look, [table]).fetchone()
                self._seen.append((time.monotonic(), row[0] if row else "neither"))
