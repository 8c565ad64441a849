"""Four supervisors' stores race for a thousand keys and are killed meanwhile; a journal of their own is the witness."""

import random
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
from db import Connection, value

CLAIMER = Path(__file__).parent / "key_claimer.py"
CLAIMERS, KILLS = 4, 4

# A run has its slot from its first start, through retries, crashes and steps, to the end that was committed.
OVER_THE_LIMIT = """
    with held as (
        select concurrency_key as key, key_limit, min(at) filter (where event = 'started') as since,
            max(at) filter (where event = 'ended' and token = last_token) as until
        from journal
        join underway.finished_run r on r.id = run
        join (select run_id, max(token) as last_token from underway.attempt group by 1) a on run_id = run
        group by run, concurrency_key, key_limit
    )
    select key, key_limit, since, 1 + (
        select count(*) from held o where o.key = h.key and o.since < h.since and o.until > h.since
    ) as at_work
    from held h
"""
OVERTAKEN = """
    select count(*) from (
        select run, lag(run) over (partition by concurrency_key order by min(at)) as before
        from journal join underway.finished_run r on r.id = run
        where event = 'started' and key_limit = 1
        group by run, concurrency_key
    ) starts
    where before > run
"""


def load(connection: Connection, keys: int, runs_per_key: int) -> None:
    """Ids in the order of enqueueing, all at once; every third key has two slots."""
    connection.execute("create table journal (run uuid, token int8, event text, at timestamptz)")
    connection.execute(
        """insert into underway.run (id, queue, job, step, state, keep, due, rank, concurrency_key, key_limit,
            max_crashes, input)
        select lpad(to_hex(n), 32, '0')::uuid, 'default', 'job', 'step', 'waiting', '1 day', now(), now(), key,
            key_limit, 100, jsonb_build_array(key, key_limit::text)
        from generate_series(1, %(runs)s) n, lateral (
            select 'key' || n %% %(keys)s as key, case when n %% %(keys)s %% 3 = 0 then 2 else 1 end as key_limit
        ) k""",
        {"runs": keys * runs_per_key, "keys": keys},
    )


def start(database: str, seed: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(CLAIMER), database, str(seed)])


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("keys", "runs_per_key"), [(1000, 3), (8, 60)], ids=["a thousand keys", "eight hot keys"])
def test_keys_are_never_exceeded_and_nobody_is_overtaken(database: str, keys: int, runs_per_key: int) -> None:
    rng = random.Random(keys)
    with psycopg.connect(database, autocommit=True) as connection:
        load(connection, keys, runs_per_key)
        running = [start(database, seed) for seed in range(CLAIMERS)]
        try:
            kills, deadline = 0, time.monotonic() + 60
            while value(connection, "select exists (select from underway.run)"):
                assert time.monotonic() < deadline, leftover(connection)
                begun = value(connection, "select count(distinct run) from journal")
                if kills < KILLS and begun > (kills + 1) * keys * runs_per_key / (KILLS + 2):
                    victim = running.pop(rng.randrange(len(running)))
                    victim.kill()
                    victim.wait()
                    kills += 1
                    running.append(start(database, 100 + kills))
                time.sleep(0.01)
            assert kills == KILLS
            assert [process.wait(10) for process in running] == [0] * CLAIMERS
        finally:
            for process in running:
                process.kill()
                process.wait()
        held = connection.execute(OVER_THE_LIMIT).fetchall()
        assert len(held) == keys * runs_per_key
        assert [row for row in held if row[3] > row[1]] == []
        assert max(row[3] for row in held) == 2, "two slots are both used"
        assert value(connection, OVERTAKEN) == 0


def leftover(connection: Connection) -> list[tuple[Any, ...]]:
    return connection.execute(
        "select state, holds_key, due, rank, count(*) from underway.runs group by 1, 2"
    ).fetchall()
