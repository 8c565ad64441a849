"""One question to the queue's database, for the queues that are on psycopg."""

from typing import Any

import psycopg

from benchmarks.peers.inside import database


def value(query: Any) -> float | None:
    with psycopg.connect(database(), autocommit=True) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    answer: float | None = row[0]
    return answer
