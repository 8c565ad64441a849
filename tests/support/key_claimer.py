"""One of several supervisors that race for keys, reduced to its store: it claims, writes a journal, and commits.

`python key_claimer.py URL SEED` runs until it is killed, at any instant.
"""

import asyncio
import random
import sys
import time
from datetime import timedelta
from uuid import uuid4

import psycopg
from db import ago, finish, go_on

from underway.definition.manifest import Lane, Policy
from underway.postgres.reconnecting import ReconnectingConnection
from underway.postgres.supervisor_store import Claimed, Lanes, Store
from underway.postgres.transitions import AdvanceRun, Attempt, FinishRun

LANES = Lanes((Lane("default", "job", step), Policy(lease=timedelta(seconds=1))) for step in ("step", "next"))
_HOUSEKEEPING_SECONDS = 0.3


async def main(url: str, rng: random.Random) -> None:
    work, leases = ReconnectingConnection(url), ReconnectingConnection(url)
    store = Store(work, leases, uuid4(), "testhost")
    housekeeping_at = 0.0
    with psycopg.connect(url, autocommit=True) as journal:
        while True:
            # Few at a time, so that several claimers see runs of the same key at the same instant.
            await store.join_key_queue(rng.choice((1, 3, 1000)))
            await store.promote(1000)
            if time.monotonic() > housekeeping_at:
                housekeeping_at = time.monotonic() + _HOUSEKEEPING_SECONDS
                await store.reap(500)
                await store.sweep_keys(("", ""), 2000)
            batch = await store.claim(LANES, rng.randint(1, 60), candidates=100, suspects=5, from_start=True)
            if not batch:
                await asyncio.sleep(0.005)
                continue
            write(journal, "started", batch)
            rows = [ending(one, rng) for one in batch]
            # Before the commit, which releases the key.
            write(journal, "ended", batch)
            await store.continue_([row for row in rows if isinstance(row, AdvanceRun)] or [no_placement()], [])
            await store.finish([row for row in rows if isinstance(row, FinishRun)] or [finish(str(uuid4()), 0)], [])


def write(journal: psycopg.Connection[tuple[object, ...]], event: str, batch: list[Claimed]) -> None:
    columns = [one.run for one in batch], [one.token for one in batch], event
    journal.execute("insert into journal select *, %s, clock_timestamp() from unnest(%s::uuid[], %s::int8[])",
                    [columns[2], columns[0], columns[1]])  # fmt: skip


def ending(one: Claimed, rng: random.Random) -> FinishRun | AdvanceRun:
    """Mostly success; sometimes a retry, or a second step with the same key."""
    chance = rng.random()
    if chance < 0.1:
        attempt = Attempt("failed", "again", started=ago(0.001))
        return go_on(one.run, one.token, step=one.lane.step, queue=None, priority=None, payload=None, attempts=1,
                     delay=0.01, attempt=attempt)  # fmt: skip
    if chance < 0.25 and one.lane.step == "step":
        key, limit = one.input.decode().strip("[]").replace('"', "").split(", ")
        return go_on(one.run, one.token, concurrency_key=key, concurrency_limit=int(limit))
    return finish(one.run, one.token)


def no_placement() -> AdvanceRun:
    return go_on(str(uuid4()), 0)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], random.Random(int(sys.argv[2]))))
