"""A steady mixed load for an hour: memory, files, processes, dead rows and the time of a claim do not grow.

For a fifth of it a session holds a snapshot, so no dead row can be removed. CHAOS_SECONDS sets the length.
"""

import random
import re
import statistics
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import psycopg
import pytest
from apps import chaos
from chaos_report import Count, Say
from chaos_settings import HOUR, SEED, stretched
from db import value
from fleet import Fleet, chaos_database
from harness import eventually, outcomes, states

SECONDS = stretched(HOUR)
PERIOD = 0.25
# Per period. This is about six hundred runs a second, which two cores manage even on a busy machine.
MIX = {"noops": 95, "pairs": 45, "flaky": 4, "burns": 1}
MORTALS = 20  # a run that kills its worker, once in this many periods
KEEP = timedelta(seconds=min(120.0, SECONDS / 6))  # most of them are removed before the end
MOST_LIVE = 3000
SAY_SECONDS = 10.0
# Shares of the time: after warming up, while the snapshot is held, and when everything must have recovered.
BEFORE, HELD, AFTER = (0.25, 0.4), (0.4, 0.6), (0.8, 1.0)

Connection = psycopg.Connection[Any]


class Sample(NamedTuple):
    """`dead` rows are still to be removed by autovacuum."""

    at: float
    rss: int
    files: int
    threads: int
    children: int
    crew_rss: int
    dead: int
    live: int


@pytest.mark.chaos_long
@pytest.mark.timeout(SECONDS + 300)
def test_nothing_grows_in_an_hour(tmp_path: Path, say: Say, count: Count) -> None:
    with chaos_database() as (cluster, url), Fleet(url, tmp_path) as fleet:
        with closing(psycopg.connect(url, autocommit=True)) as connection:
            log_some_statements(connection)
            vacuum_often(connection)
            supervisor = fleet.start("--procs", "2").supervisor
            supervisor.until("serving")
            began = time.time()
            samples = list(watch(connection, url, psutil.Process(supervisor.pid), say))
            eventually(lambda: "in_progress" not in states(connection) or None, within=60)
            fleet.stop()
            ended = outcomes(connection)
            count(attempts=sum(ended.values()), crashes=ended.get("crashed", 0), leases_lapsed=ended.get("lost", 0))
        claims = [(at - began, ms) for at, ms in claim_times(cluster.log)]
    assert claims[-1][0] > SECONDS - 10, f"nothing was claimed after {claims[-1][0]:.0f} s"
    before, held, after = (
        Window(
            [sample for sample in samples if least <= sample.at / SECONDS < most],
            [ms for at, ms in claims if least <= at / SECONDS < most],
        )
        for least, most in (BEFORE, HELD, AFTER)
    )
    for name, window in (("before", before), ("held", held), ("after", after)):
        say(f"{name}: {window}")
    count(
        peak_mib=after.mib,
        grown_by_kib=(after.rss - before.rss) // 1024,
        peak_p99_of_claims_before_in_us=round(before.claim_p99 * 1000),
        peak_p99_of_claims_while_a_snapshot_is_held_in_us=round(held.claim_p99 * 1000),
        peak_p99_of_claims_after_in_us=round(after.claim_p99 * 1000),
        peak_dead_rows_while_a_snapshot_is_held=held.dead,
        peak_dead_rows_after=after.dead,
    )
    assert fleet.faults == []
    assert max(sample.live for sample in samples) < MOST_LIVE, "it did not keep up"
    assert held.dead > 3 * before.dead, "the snapshot had no effect"
    assert after.rss - before.rss < 3 * 2**20
    assert after.crew_rss - before.crew_rss < 10 * 2**20
    assert after.files - before.files <= 2
    assert {sample.threads for sample in samples} == {2}  # the main thread and the log writer
    assert after.children == before.children
    assert after.dead < 3 * before.dead + 5000
    # Other load makes some claims slow; dead rows make all of them slow.
    assert after.claim_median < 2 * before.claim_median + 1
    assert after.claim_p99 < 3 * before.claim_p99 + 5
    assert held.claim_p99 < 10 * before.claim_p99 + 10


class Window:
    """The typical values in a part of the time."""

    def __init__(self, samples: list[Sample], claims: list[float]) -> None:
        self.rss, self.files, self.children, self.crew_rss, self.live = (
            round(statistics.median(getattr(sample, name) for sample in samples))
            for name in ("rss", "files", "children", "crew_rss", "live")
        )
        self.dead = max(sample.dead for sample in samples)
        self.mib = max(sample.rss for sample in samples) >> 20
        self._claims = len(claims)
        self.claim_median = statistics.median(claims)
        self.claim_p99 = statistics.quantiles(claims, n=100)[-1]

    def __str__(self) -> str:
        return (
            f"{self.rss / 2**20:.1f} MiB, its workers {self.crew_rss / 2**20:.1f}, {self.files} files, {self.children} "
            f"children, {self.live} live runs, up to {self.dead:,} dead rows; a claim {self.claim_median:.2f} ms, p99 "
            f"{self.claim_p99:.2f} of {self._claims:,}"
        )


def watch(connection: Connection, url: str, process: psutil.Process, say: Say) -> Iterator[Sample]:
    """Samples under constant load."""
    rng = random.Random(SEED)
    numbers = iter(range(10**9))
    stranger: Connection | None = None
    began = said = time.monotonic()
    for period in range(10**9):
        at = time.monotonic() - began
        if at > SECONDS:
            return
        if stranger is None and HELD[0] <= at / SECONDS < HELD[1]:
            stranger = psycopg.connect(url)
            stranger.execute("set transaction isolation level repeatable read")
            stranger.execute("select count(*) from underway.run")
        elif stranger is not None and at / SECONDS >= HELD[1]:
            stranger.close()
            stranger = None
        live = value(connection, "select count(*) from underway.run")
        if live < MOST_LIVE:
            with connection.transaction():
                for job, many in MIX.items():
                    items = [chaos.Item(next(numbers)) for _ in range(many)]
                    chaos.jobs[job].enqueue_many(items, conn=connection, keep=KEEP)
                late = timedelta(seconds=rng.uniform(0, 5))
                chaos.jobs["noops"].enqueue_many(
                    [chaos.Item(next(numbers))] * 5, conn=connection, keep=KEEP, delay=late
                )
                if period % MORTALS == 0:
                    chaos.jobs["mortals"].enqueue(chaos.Item(next(numbers)), conn=connection, keep=KEEP)
        dead = "select coalesce(n_dead_tup, 0) from pg_stat_user_tables where relid = 'underway.run'::regclass"
        children = process.children()
        yield Sample(
            at, process.memory_info().rss, process.num_fds(), process.num_threads(), len(children),
            sum(_rss(child) for child in children), value(connection, dead), live,
        )  # fmt: skip
        if time.monotonic() > said + SAY_SECONDS:
            said = time.monotonic()
            mib = process.memory_info().rss / 2**20
            say(f"{at:.0f} of {SECONDS:.0f} s, {mib:.1f} MiB, {live} live, {value(connection, dead):,} dead rows")
        time.sleep(max(0.0, began + (period + 1) * PERIOD - time.monotonic()))


def _rss(process: psutil.Process) -> int:
    with suppress(psutil.Error):
        return int(process.memory_info().rss)
    return 0


def vacuum_often(connection: Connection) -> None:
    """In proportion to the default, once a minute in an hour."""
    connection.execute(f"alter system set autovacuum_naptime = '{max(1, round(SECONDS / 60))} s'")
    connection.execute("select pg_reload_conf()")


def log_some_statements(connection: Connection) -> None:
    """Log durations; in an hour, of one statement in a hundred. Applies to new connections."""
    rate = min(1.0, 36 / SECONDS)
    name = connection.info.dbname
    for setting, to in {
        "log_min_duration_sample": 0,
        "log_statement_sample_rate": rate,
        "log_parameter_max_length": 0,
    }.items():
        connection.execute(f"alter database {name} set {setting} = {to}")


# The first line of the server's log entry, and the beginning of the claim.
_CLAIM = re.compile(r"LOG:  duration: ([\d.]+) ms  execute \S+: with lane as \($")


def claim_times(log: Path) -> Iterator[tuple[float, float]]:
    """The time of each claim, and its duration in milliseconds."""
    with log.open(errors="replace") as lines:
        for line in lines:
            if found := _CLAIM.search(line.rstrip()):
                at = time.strptime(line[:19], "%Y-%m-%d %H:%M:%S")
                yield time.mktime(at), float(found[1])
