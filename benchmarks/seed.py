"""Seeds the tables with millions of rows, by set-based SQL: what surrounds a claim in an old table."""

from collections.abc import Callable
from typing import Any, LiteralString, TypeAlias

import psycopg

from benchmarks.engine import FIRST, JOB, QUEUE

# Inserts the rows numbered from %s to %s.
InsertStatement: TypeAlias = LiteralString

_CHUNK = 250_000
_RUN: LiteralString = "insert into underway.run (id, job, step, queue, keep, due_at, rank, priority, state, input)"

# n numbers the rows of each kind. IDs are time-ordered, as those of clients are.
PENDING: InsertStatement = f"""
    {_RUN}
    select uuidv7(), '{JOB}', '{FIRST}', '{QUEUE}', '1 hour', at, at, 0, 'pending', '{{"order_id": 42}}'
    from (select n, now() - interval '1 hour' + n * interval '1 ms' as at from generate_series(%s::int, %s) n) placed
    order by n
"""
# A thousand priorities, so that delayed runs rank before and behind the pending ones.
DELAYED: InsertStatement = f"""
    {_RUN}
    select uuidv7(), '{JOB}', '{FIRST}', '{QUEUE}', '1 hour', due_at, due_at - n %% 1000 * interval '1 minute',
        n %% 1000, 'waiting', '{{"order_id": 42}}'
    from (select n, now() + interval '1 day' + n * interval '1 ms' as due_at from generate_series(%s::int, %s) n) placed
    order by n
"""
UNSERVED: InsertStatement = f"""
    {_RUN}
    select uuidv7(), 'unserved', '{FIRST}', '{QUEUE}', '1 hour', at, at, 0, 'pending', '{{"order_id": 42}}'
    from (select n, now() - interval '1 day' + n * interval '1 ms' as at from generate_series(%s::int, %s) n) placed
    order by n
"""
# One attempt for each run.
FINISHED: InsertStatement = f"""
    with finished as (
        insert into underway.finished_run (id, created_at, expires_at, keep, attempts, crashes, releases, priority,
            state, queue, job, step, result)
        select uuidv7(), now(), now() + interval '14 days', '14 days', 0, 0, 0, 0,
            'succeeded', '{QUEUE}', '{JOB}', '{FIRST}', '{{"receipt": 42}}'
        from generate_series(%s::int, %s)
        returning id
    )
    insert into underway.attempt (run_id, token, attempt_number, pid, started_at, finished_at, peak_rss, cpu_seconds,
        step, outcome, host)
    select id, nextval('underway.token'), 1, 4711, now(), now(), 50000000, 0.02, '{FIRST}', 'succeeded', 'benchmark'
    from finished
"""
# New runs go to the end of the queue.
_FRESH: LiteralString = f"""
    {_RUN}
    select uuidv7(), '{JOB}', '{FIRST}', '{QUEUE}', '1 hour', now(), now(), 0, 'pending', '{{"order_id": 42}}'
    from generate_series(1, %s)
"""


def load(
    connection: psycopg.Connection[Any], statement: InsertStatement, count: int, show_progress: Callable[[str], None]
) -> None:
    for first in range(1, count + 1, _CHUNK):
        show_progress(f"{first - 1:,} of {count:,} loaded")
        connection.execute(statement, (first, min(first + _CHUNK - 1, count)))


def add_pending(connection: psycopg.Connection[Any], count: int) -> None:
    """Add new pending runs."""
    connection.execute(_FRESH, (count,))
