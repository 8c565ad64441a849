"""Four supervisors' stores race for hundreds of keys while some are killed; their journal shows what happened."""

import random
import subprocess
import sys
import time

import psycopg
import pytest
from db import Connection, value
from harness import eventually
from places import SUPPORT

CLAIMER = SUPPORT / "key_claimer.py"
CLAIMERS, KILLS, WAVES = 4, 4, 100
WAVE_SECONDS = 0.02

# A run holds its slot from its first start, through retries, crashes and steps, until its committed end.
EXECUTING = """
    with held as (
        select concurrency_key as key, concurrency_limit, min(at) filter (where event = 'started') as since,
            max(at) filter (where event = 'ended' and token = last_token) as until
        from journal
        join underway.finished_run r on r.id = run
        join (select run_id, max(token) as last_token from underway.attempt group by 1) a on run_id = run
        group by run, concurrency_key, concurrency_limit
    )
    select key, concurrency_limit, since, 1 + (
        select count(*) from held o where o.key = h.key and o.since < h.since and o.until > h.since
    ) as executing
    from held h
"""
OVERTAKEN = """
    select count(*) from (
        select run, lag(run) over (partition by concurrency_key order by min(at)) as previous
        from journal join underway.finished_run r on r.id = run
        where event = 'started' and concurrency_limit = 1
        group by run, concurrency_key
    ) starts
    where previous > run
"""


def enqueue(connection: Connection, keys: int, numbers: range) -> None:
    """IDs in the order of enqueueing, three runs of a key in a row; every third key has two slots."""
    connection.execute(
        """insert into underway.run (id, queue, job, step, state, keep, due_at, rank, concurrency_key,
            concurrency_limit, max_crashes, input)
        select lpad(to_hex(n), 32, '0')::uuid, 'default', 'job', 'step', 'waiting', '1 day', now(), now(), key,
            concurrency_limit, 100, jsonb_build_array(key, concurrency_limit::text)
        from generate_series(%(first)s::int, %(last)s::int) n, lateral (
            select 'key' || n / 3 %% %(keys)s as key,
                case when n / 3 %% %(keys)s %% 3 = 0 then 2 else 1 end as concurrency_limit
        ) k""",
        {"first": numbers.start, "last": numbers.stop - 1, "keys": keys},
    )


def start(database: str, seed: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(CLAIMER), database, str(seed)])


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("keys", "runs"), [(500, 1500), (8, 500)], ids=["five hundred keys", "eight hot keys"])
def test_limits_of_keys_are_never_exceeded_and_no_run_is_overtaken(database: str, keys: int, runs: int) -> None:
    rng = random.Random(keys)
    wave = runs // WAVES
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("create table journal (run uuid, token int8, event text, at timestamptz)")
        enqueue(connection, keys, range(1, wave + 1))
        running = [start(database, seed) for seed in range(CLAIMERS)]
        try:
            eventually(lambda: value(connection, "select exists (select from journal)"))
            # With runs arriving in waves, most keys are free now and then, and several claimers may grant the slot.
            for number in range(1, WAVES):
                enqueue(connection, keys, range(number * wave + 1, (number + 1) * wave + 1))
                time.sleep(rng.uniform(0, 2 * WAVE_SECONDS))
                if number % (WAVES // KILLS) == 0:
                    victim = running.pop(rng.randrange(len(running)))
                    victim.kill()
                    victim.wait()
                    running.append(start(database, 100 + number))
            eventually(lambda: not value(connection, "select exists (select from underway.run)"), within=60)
        finally:
            left = leftover(connection)
            for process in running:
                process.kill()
                process.wait()
        assert left == []
        held = connection.execute(EXECUTING).fetchall()
        assert len(held) == wave * WAVES
        assert [row for row in held if row[3] > row[1]] == []
        assert max(row[3] for row in held) == 2, "both slots of a key are used"
        assert value(connection, OVERTAKEN) == 0


def leftover(connection: Connection) -> object:
    return connection.execute("select state, holds_key, count(*) from underway.run group by 1, 2").fetchall()
