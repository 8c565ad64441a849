"""Two queries of the queue's database, for the queues that use psycopg."""

from typing import Any

import psycopg

from benchmarks.peers.inside import database


def count(rows: str) -> int:
    """Count rows; `rows` is what follows `from` in the query."""
    return int(_value(f"select count(*) from {rows}"))


def latest(column: str, rows: str) -> float | None:
    """The latest time in this column, in seconds since the epoch; None without rows."""
    moment: float | None = _value(f"select extract(epoch from max({column}))::float8 from {rows}")
    return moment


def _value(query: Any) -> Any:
    with psycopg.connect(database(), autocommit=True) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]
