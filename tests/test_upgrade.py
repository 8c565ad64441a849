"""From migration 1 to this version while work goes on: the package of that time, at work, and this one beside it."""

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from db import AGES_AGO, Connection, insert, insert_held, next_token, row_of, value
from harness import APPS, Supervisor, eventually, outcomes, states
from old_package import COMMIT, OldPackage, extract

from underway import Underway
from underway.errors import SchemaTooNew, SchemaTooOld
from underway.postgres import migrate

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


class Client:
    """Enqueues runs of `plain` with the old package, as long as it is open."""

    def __init__(self, old: OldPackage, fleet: Fleet) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", CLIENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **old.env, **fleet.env, "UNDERWAY_DATABASE_URL": fleet.database},
            text=True,
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        answer, _ = self._process.communicate(timeout=30)
        assert self._process.returncode == 0
        self.enqueued = int(answer)


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


def finished(connection: Connection) -> int:
    return int(value(connection, "select count(*) from underway.finished_run"))


def migrate_now(database: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "underway.cli.admin", "migrate", "--database", database]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_old_and_new_share_the_work_from_before_the_migration_to_the_last_old_one(
    fleet: Fleet, old: OldPackage
) -> None:
    olds = [fleet.start_old("--procs", "1"), fleet.start_old("--procs", "1")]
    for supervisor in olds:
        supervisor.until("serving")
    other_language = "select underway.enqueue('plain', '1', priority => 1)"
    with (
        psycopg.connect(fleet.database, autocommit=True) as connection,
        Repeating(fleet.database, "select count(*) from underway.runs where state = 'pending'") as looking,
        Client(old, fleet) as client,
        Repeating(fleet.database, other_language) as calling,
    ):
        # Old code on the old schema, on the schema as it changes, and on the new one.
        eventually(lambda: finished(connection) > 50)
        done = migrate_now(fleet.database)
        assert done.stdout.splitlines()[-1].startswith(f"applied {migrate.migrations()[-1].version:04d}"), done.stderr
        so_far = finished(connection)
        eventually(lambda: finished(connection) > so_far + 50)

        # New code beside it; what it alone can say of a run is kept by both.
        news = [fleet.start_new("--procs", "1")]
        news[0].until("serving")
        enqueue = "select underway.enqueue(%s, '0') from generate_series(1, %s)"
        connection.execute(enqueue, ["single", 40])
        connection.execute(enqueue, ["newer", 10])
        (cancelled,) = connection.execute(enqueue, ["forever", 1]).fetchone() or ("",)
        eventually(lambda: any(what == "began" for *_, what in fleet.journal()))
        assert value(connection, "select underway.cancel(%s)", [cancelled])

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
    count = client.enqueued + calling.count
    with psycopg.connect(fleet.database) as connection:
        assert states(connection) == {"succeeded": count + 50, "cancelled": 1}
        ended = connection.execute("select run_id, step, outcome from underway.attempt").fetchall()
        kinds = Counter(outcome for _, _, outcome in ended)
        assert (kinds["succeeded"], kinds["cancelled"] <= 1) == (count * 2 + 50, True)
        assert set(kinds) <= {"succeeded", "failed", "released", "cancelled"}
    journal = Counter((step, what) for _, step, _, what in fleet.journal())
    assert journal == {("second", "done"): count, ("alone", "done"): 40, ("only_new", "done"): 10, ("endless", "began"): 1}
    both = Counter((step, code) for _, step, code, _ in fleet.journal())
    assert all(both["second", code] for code in ("old", "new"))
    assert both["only_new", "old"] == 0
    for supervisor in fleet.supervisors:
        assert "Traceback" not in supervisor.log
        assert "interrupted: " not in supervisor.log.replace("interrupted: somebody has cancelled it", "")
