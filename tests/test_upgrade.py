"""From migration 1 to this version while work goes on: the package of that time, at work, and this one beside it."""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from chaos_report import Count, Say
from db import AGES_AGO, IN_AN_HOUR, Connection, insert, insert_held, row_of, value, with_store
from harness import APPS, Supervisor, eventually, states
from million import HALF, Claim, Latencies, MigrationLock, files, fill
from old_package import COMMIT, OldPackage, extract

from underway import Underway
from underway.errors import SchemaError, SchemaTooOld
from underway.manifest import Placement
from underway.postgres import migrate, runs

APP = f"{APPS / 'upgrade.py'}:app"
NEW = {"NEW": "yes"}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> OldPackage:
    package = extract(tmp_path_factory.mktemp("old"))
    if package is None:
        pytest.skip(f"this clone has no commit {COMMIT[:7]}, and it cannot be fetched")
    return package


@pytest.fixture
def old_database(old: OldPackage, empty_database: str) -> str:
    """A database as the old package makes it."""
    done = old.run("-m", "underway.cli.admin", "migrate", database=empty_database)
    assert done.stdout == "applied 0001_initial\n", done.stderr
    return empty_database


class Fleet:
    """Supervisors of both kinds on one database, and what their steps leave in the journal."""

    def __init__(self, database: str, old: OldPackage, folder: Path) -> None:
        self.database = database
        self.folder = folder
        self.supervisors: list[Supervisor] = []
        self._old = old
        self._journal = folder / "journal"
        self._journal.touch()
        self.env = {"JOURNAL": str(self._journal)}

    def start_old(self, *options: str) -> Supervisor:
        return self._start(options, {**self.env, "PYTHONPATH": self._old.env["PYTHONPATH"], "PYTHONSAFEPATH": "1"})

    def start_new(self, *options: str) -> Supervisor:
        return self._start(options, {**self.env, **NEW})

    def _start(self, options: tuple[str, ...], env: dict[str, str]) -> Supervisor:
        log = self.folder / f"supervisor{len(self.supervisors)}.log"
        self.supervisors.append(Supervisor(APP, self.database, log, *options, env=env))
        return self.supervisors[-1]

    def journal(self) -> list[list[str]]:
        """(run, step, code, what) of each line."""
        return [line.split(maxsplit=3) for line in self._journal.read_text().splitlines()]


@pytest.fixture
def fleet(old_database: str, old: OldPackage, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(old_database, old, tmp_path)
    yield fleet
    for supervisor in fleet.supervisors:
        supervisor.end()


# A client of either package: enqueues until its stdin ends, then says how many runs of `plain` it has enqueued.
CLIENT = f"""
import sys, threading, time
sys.path.insert(0, {str(APPS.parent)!r})
from apps.upgrade import plain
done = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), done.set()), daemon=True).start()
count = 0
while not done.is_set():
    plain.enqueue(count)
    plain.enqueue_many(range(count, count + 4))
    count += 5
    time.sleep(0.02)
print(count)
"""

# Two supervisors of which nothing is there but claims and commits: says when each claim began and ended, and what it
# got. Their patience is that of all supervisors: after 10 s a statement fails.
CLAIMERS = """
import asyncio, json, os, sys, threading, time
from uuid import uuid4
from underway.manifest import Lane, Policy
from underway.postgres.session import Session
from underway.postgres.store import Attempt, Finish, Lanes, Store

done = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), done.set()), daemon=True).start()
lanes = Lanes([(Lane("default", "fed", "step"), Policy())])
succeeded = Attempt("succeeded", started=0.0)
claims = []

async def work():
    session = Session(os.environ["UNDERWAY_DATABASE_URL"])
    store = Store(session, session, uuid4(), "host")
    claimed, over = [], False
    while claimed or not over:
        over = done.is_set()  # before the claim, or what was enqueued last may come between
        began = time.monotonic()
        claimed = await store.claim(lanes, 10, candidates=10, suspects=1)
        runs = [run.run for run in claimed]
        claims.append((began, time.monotonic(), runs))
        rows = [Finish(run.run, run.token, "succeeded", "1", 0, 0, succeeded) for run in claimed]
        while rows:  # what the other claim has locked, because it looked at it too, is left for the next turn
            gone = await store.finish(rows, [])
            rows = [row for row in rows if row.run not in gone]
        if not claimed:
            await asyncio.sleep(0.002)
    await session.close()

async def main():
    await asyncio.gather(work(), work())

asyncio.run(main())
print(json.dumps(claims))
"""


class OldProgram:
    """A program with the old package that works as long as it is open, until its stdin ends; then it says what."""

    def __init__(self, program: str, old: OldPackage, fleet: Fleet) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **old.env, **fleet.env, "UNDERWAY_DATABASE_URL": fleet.database},
            text=True,
        )

    def __enter__(self) -> "OldProgram":
        return self

    def __exit__(self, *_: object) -> None:
        self.answer = self._process.communicate(timeout=30)[0]
        assert self._process.returncode == 0


class Repeating:
    """One statement again and again on a connection of its own, in a thread, as long as it is open."""

    def __init__(self, database: str, statement: str) -> None:
        self._database = database
        self._statement = statement
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.count = 0
        self.errors: list[str] = []

    def __enter__(self) -> "Repeating":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        with psycopg.connect(self._database, autocommit=True) as connection:
            while not self._done.wait(0.002):
                try:
                    connection.execute(self._statement)
                    self.count += 1
                except psycopg.Error as error:
                    self.errors.append(str(error))


def cut_off(connection: Connection) -> None:
    """End every other connection to this database."""
    connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )


def finished(connection: Connection) -> int:
    return int(value(connection, "select count(*) from underway.finished_run"))


def runs_of(connection: Connection, query: str) -> Counter[str]:
    """The runs that a query names, and how often."""
    return Counter(run for (run,) in connection.execute(query))


def new_command(fleet: Fleet, *arguments: str) -> str:
    """What `underway` of this version says."""
    env = {**os.environ, **fleet.env, **NEW, "UNDERWAY_DATABASE_URL": fleet.database}
    command = [sys.executable, "-m", "underway.cli.admin", *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.chaos
def test_old_and_new_share_the_work_from_before_the_migration_to_the_last_old_one(
    fleet: Fleet, old: OldPackage, count: Count
) -> None:
    olds = [fleet.start_old("--procs", "1"), fleet.start_old("--procs", "1")]
    for supervisor in olds:
        supervisor.until("serving")
    other_language = "select underway.enqueue('plain', '1', priority => 1)"
    with (
        psycopg.connect(fleet.database, autocommit=True) as connection,
        Repeating(fleet.database, "select count(*) from underway.runs where state = 'pending'") as looking,
        OldProgram(CLIENT, old, fleet) as client,
        Repeating(fleet.database, other_language) as calling,
    ):
        # Old code on the old schema, on the schema as it changes, and on the new one.
        eventually(lambda: finished(connection) > 50)
        assert len(new_command(fleet, "migrate").splitlines()) == len(migrate.migrations()) - 1
        so_far = finished(connection)
        eventually(lambda: finished(connection) > so_far + 50)

        # Clients with new code first: what only that can say of a run, old supervisors leave as it is.
        new_command(fleet, "sync", APP)
        (running,) = connection.execute("select underway.enqueue('forever')").fetchone() or ("",)
        connection.execute("select underway.enqueue('single', '0') from generate_series(1, 20)")
        eventually(lambda: any(what == "began" for *_, what in fleet.journal()))
        assert value(connection, "select underway.cancel(%s)", [running])
        so_far = finished(connection)
        eventually(lambda: finished(connection) > so_far + 50)

        # Then supervisors with new code too.
        news = [fleet.start_new("--procs", "1")]
        news[0].until("serving")
        connection.execute("select underway.enqueue('newer') from generate_series(1, 10)")
        so_far = finished(connection)
        eventually(lambda: finished(connection) > so_far + 50)

    # Only new code.
    for supervisor in olds:
        os.kill(supervisor.pid, 15)
    assert [supervisor.wait() for supervisor in olds] == [0, 0]
    news.append(fleet.start_new("--until-idle"))
    assert news[1].wait(60) == 0
    os.kill(news[0].pid, 15)
    assert news[0].wait() == 0

    assert (looking.errors, calling.errors) == ([], [])
    assert looking.count > 10
    enqueued = int(client.answer) + calling.count
    with psycopg.connect(fleet.database) as connection:
        found = states(connection)
        count(runs=enqueued + 31, lost=enqueued + 31 - sum(found.values()))
        assert found == {"succeeded": enqueued + 30, "cancelled": 1}
        ended = connection.execute("select run_id, step, outcome from underway.attempt").fetchall()
        kinds = Counter(outcome for _, _, outcome in ended)
        assert (kinds["succeeded"], kinds["cancelled"] <= 1) == (enqueued * 2 + 30, True)
        assert set(kinds) <= {"succeeded", "failed", "released", "cancelled"}
    journal = Counter((step, what) for _, step, _, what in fleet.journal())
    expected = {("second", "done"): enqueued, ("alone", "done"): 20, ("only_new", "done"): 10, ("endless", "began"): 1}
    assert journal == expected
    both = Counter((step, code) for _, step, code, _ in fleet.journal())
    assert all(both["second", code] for code in ("old", "new"))
    assert both["only_new", "old"] == 0
    for supervisor in fleet.supervisors:
        assert "Traceback" not in supervisor.log
        assert "interrupted: " not in supervisor.log.replace("interrupted: somebody has cancelled it", "")


# Beside a million runs


def migrate_past_a_dump(fleet: Fleet, lock: MigrationLock) -> tuple[float, float, float]:
    """The instants when the migration began, when it was let in, and when it was over."""
    with psycopg.connect(fleet.database) as dump, ThreadPoolExecutor(1) as pool:
        dump.execute("select from underway.run limit 1")
        began = time.monotonic()
        migrating = pool.submit(new_command, fleet, "migrate")
        eventually(lambda: lock.state == "waits")
        eventually(lambda: lock.state == "neither")  # it steps back, and comes again
        dump.rollback()
        let_in = time.monotonic()
        assert len(migrating.result().splitlines()) == len(migrate.migrations()) - 1
        return began, let_in, time.monotonic()


@pytest.mark.chaos
def test_a_million_runs_are_migrated_while_old_workers_claim(
    fleet: Fleet, old: OldPackage, say: Say, count: Count
) -> None:
    """Each claimer waits once for the migration, and once more behind it for the dump; all else is as fast as before.

    On two cores with other work too, in ten runs: before, p50 0.5 to 1.6 ms, p99 3 to 12 ms, at most 23 ms; while it
    migrated, p50 0.5 to 2.8 ms, p99 8 to 39 ms, at most 1.4 to 2.2 s, which is how long it had the table. The p99 is of
    claims made one after another, of which the lock stops only one each.
    """
    with psycopg.connect(fleet.database, autocommit=True) as connection:
        fill(connection)
        connection.execute(
            "insert into underway.job (name, step, queue, priority, delay, keep)"
            " values ('fed', 'step', 'default', 0, '0', '1 day')"
        )
        before = files(connection)
        with (
            OldProgram(CLAIMERS, old, fleet) as claimers,
            Repeating(fleet.database, "select underway.enqueue('fed')") as feeding,
            MigrationLock(fleet.database) as lock,
        ):
            eventually(lambda: finished(connection) > HALF)
            began = time.monotonic()
            time.sleep(3)
            migration_began, let_in, over = migrate_past_a_dump(fleet, lock)
            assert files(connection) == before
            so_far = feeding.count
            eventually(lambda: feeding.count > so_far + 50)

        claims = [Claim(*claim) for claim in json.loads(claimers.answer)]
        usual = Latencies(claims, began, migration_began)
        kept_out = Latencies(claims, migration_began, let_in)
        migrated = Latencies(claims, let_in, over)
        say(f"before: {usual}\nwhile it waited for {lock.longest('waits'):.1f} s: {kept_out}")
        say(f"while it migrated, {lock.longest('has'):.1f} s of it with the table locked: {migrated}")

        claimed = Counter(run for claim in claims for run in claim.runs)
        succeeded = runs_of(connection, "select id::text from underway.finished_run where job = 'fed'")
        attempted = runs_of(connection, "select run_id::text from underway.attempt where host = 'host'")
        count(
            runs=feeding.count,
            lost=feeding.count - len(succeeded),
            peak_ms_of_a_claim=round(usual.longest),
            peak_p99_while_migrated=round(migrated.p99),
            peak_ms_of_a_claim_while_migrated=round(migrated.longest),
        )
        assert feeding.errors == []
        assert (len(claimed), succeeded, attempted) == (feeding.count, claimed, claimed)
        assert states(connection) == {
            "pending": HALF - HALF // 5,
            "waiting": HALF // 5,
            "succeeded": HALF - HALF // 20 + feeding.count,
            "failed": HALF // 20,
        }
        # That no claim fails is the promise, and after 10 s one does. These are far off, for the sake of busy machines.
        assert lock.longest("waits") < 3
        assert max(kept_out.longest, migrated.longest) < 5000


# What code of migration 1 would do to rows that it does not understand, statement by statement.


def from_old(url: str) -> Connection:
    """A connection to the database, its schema brought from migration 1 to this version's."""
    connection = psycopg.connect(url, autocommit=True)
    known = migrate.migrations()
    connection.execute("drop schema underway cascade")
    connection.execute("create schema underway")
    connection.execute(
        "create table underway.migration (version int primary key, name text, oldest_code int,"
        " applied_at timestamptz default clock_timestamp())"
    )
    connection.execute(known[0].sql)
    connection.execute("insert into underway.migration values (1, 'initial', 1)")
    migrate.migrate(connection)
    return connection


def test_old_promoters_and_reapers_leave_alone_what_they_do_not_understand(old: OldPackage, any_database: str) -> None:
    statements = old.statements()
    us = uuid4()
    with from_old(any_database) as connection:
        key = {"concurrency_key": "key", "key_limit": 1}
        rows = [
            insert(connection, state="waiting", **key),
            insert_held(connection, us, cancel_requested=True)[0],
            insert_held(connection, uuid4(), cancel_requested=True, lease_until=AGES_AGO)[0],
        ]
        before = [row_of(connection, "run", run) for run in rows]
        theirs = [
            insert(connection, state="waiting"),
            insert(connection, state="waiting", holds_key=True, **key),
            insert_held(connection, us)[0],
            insert_held(connection, uuid4(), lease_until=AGES_AGO)[0],
        ]
        connection.execute(statements["promote_runs"], {"limit": 10})
        connection.execute(statements["release_unknown"], {"owner": us, "known": []})
        connection.execute(statements["reap_runs"], {"limit": 10})
        assert [row_of(connection, "run", run) for run in rows] == before
        states = [(row_of(connection, "run", run) or {})["state"] for run in theirs]
        assert states == ["pending", "pending", "pending", "waiting"]


def test_runs_in_line_do_not_end_old_promoters(old: OldPackage, any_database: str) -> None:
    """Up to PostgreSQL 16 their question could not be answered when nothing waited but runs in line."""
    with from_old(any_database) as connection:
        for _ in range(2):
            insert(connection, state="waiting", concurrency_key="key")
        rows = [runs.KeyedRun(uuid4(), b"1", None, "key") for _ in range(3)]
        runs.insert_keyed_runs(connection, rows, "job", "step", Placement())
        with_store(any_database, lambda store: store.line_up(10))
        assert value(connection, "select count(*) from underway.run where state = 'waiting'") == 4
        assert value(connection, "select count(*) from underway.runs where due is null") == 4
        assert value(connection, old.statements()["seconds_until_due"]) > 1e9


def test_what_is_there_outlives_the_migrations(old_database: str) -> None:
    with psycopg.connect(old_database, autocommit=True) as connection:
        more = {"priority": 7, "unique_key": "key", "keep": timedelta(days=3), "attempts": 2, "crashes": 1}
        insert(connection, **more)
        insert(connection, state="waiting", due=IN_AN_HOUR)
        insert_held(connection, uuid4(), progress='{"done": 1}')
        ended = insert(connection)
        move = "with gone as (delete from underway.run where id = %s returning *) insert into underway.finished_run"
        columns = "id, created_at, keep, attempts, crashes, releases, priority, queue, job, step"
        connection.execute(
            f"{move} ({columns}, expires_at, state, error) select {columns}, now(), 'failed', 'oh' from gone", [ended]
        )
        connection.execute(
            "insert into underway.attempt (run_id, token, number, finished_at, step, outcome)"
            " values (%s, 1, 1, now(), 'step', 'failed')",
            [ended],
        )
        tables = ("run", "finished_run", "attempt")
        rows = {table: f"select id, to_jsonb(t) from underway.{table} t order by 1" for table in tables[:2]}
        rows["attempt"] = "select run_id, to_jsonb(t) from underway.attempt t"
        before = {table: connection.execute(query).fetchall() for table, query in rows.items()}
        migrate.migrate(connection)
        for table, query in rows.items():
            after = connection.execute(query).fetchall()
            assert [run for run, _ in after] == [run for run, _ in before[table]]
            for (_, old_row), (_, new_row) in zip(before[table], after, strict=True):
                assert {name: new_row[name] for name in old_row} == old_row
        assert len(connection.execute("select from underway.runs").fetchall()) == 4


# Refusals


def test_new_code_refuses_the_old_schema(fleet: Fleet) -> None:
    supervisor = fleet.start_new()
    assert supervisor.wait() == 4
    assert "run 'underway migrate'" in supervisor.log
    assert "Traceback" not in supervisor.log
    app = Underway(fleet.database)
    with pytest.raises(SchemaTooOld, match="run 'underway migrate'"), app.connection():
        pass
    app.close()


def test_old_code_refuses_a_schema_that_has_no_room_for_it(fleet: Fleet, old: OldPackage) -> None:
    running = fleet.start_old()
    running.until("serving")
    new_command(fleet, "migrate")
    with psycopg.connect(fleet.database, autocommit=True) as connection:
        connection.execute("insert into underway.migration values (99, 'contracted', 2)")
        # What runs already refuses when it connects again.
        cut_off(connection)
    assert running.wait() == 4
    starting = fleet.start_old()
    assert starting.wait() == 4
    for supervisor in (running, starting):
        assert "install the newer version of underway" in supervisor.log
        assert "Traceback" not in supervisor.log
    done = old.run("-m", "underway.cli.admin", "migrate", database=fleet.database)
    assert done.returncode == 1
    assert "install the newer version of underway" in done.stderr


def test_a_new_database_has_no_room_for_code_of_migration_1(fleet: Fleet, old: OldPackage, database: str) -> None:
    done = old.run("-m", "underway.cli.admin", "migrate", database=database)
    assert done.returncode == 1
    assert "the database needs code that knows migration 2, this version of underway knows 1" in done.stderr


# Locks


def test_a_migration_that_has_to_wait_holds_up_nobody_for_long(
    old_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever wants a table that a migration waits for waits behind it."""
    monkeypatch.setattr(migrate, "_LOCK_TIMEOUT", "500ms")
    with psycopg.connect(old_database) as reader, psycopg.connect(old_database, autocommit=True) as worker:
        reader.execute("select count(*) from underway.run")  # and stays open, like a dump
        applied: list[str] = []

        def bring_up() -> None:
            with psycopg.connect(old_database) as connection:
                applied.extend(migrate.migrate(connection))

        migrating = threading.Thread(target=bring_up)
        migrating.start()
        waiting = "select count(*) from pg_locks where not granted and relation = 'underway.run'::regclass"
        eventually(lambda: value(worker, waiting))
        insert(worker)  # the migration steps back, as the reader does not
        assert migrating.is_alive()
        reader.rollback()
        migrating.join()
    assert len(applied) == len(migrate.migrations()) - 1


def test_a_migration_that_waits_in_vain_says_so(old_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "_TRIES", 2)
    monkeypatch.setattr(migrate, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(migrate, "_LOCK_TIMEOUT", "50ms")
    with psycopg.connect(old_database) as reader, psycopg.connect(old_database) as connection:
        reader.execute("select count(*) from underway.runs")
        with pytest.raises(SchemaError, match=r"nothing was migrated: .* pg_stat_activity"):
            migrate.migrate(connection)
        reader.rollback()
        assert value(connection, "show lock_timeout") == "0"
        assert len(migrate.migrate(connection)) == len(migrate.migrations()) - 1
        assert value(connection, "show lock_timeout") == "0"
