"""A password in the database's URL appears in no log, error, label, process argument or row."""

import itertools
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg
import pytest
from apps import basic
from db import value
from harness import Supervisor, eventually
from places import APPS
from psycopg import sql
from psycopg.conninfo import make_conninfo
from underway_command import underway

from underway import Underway, UnderwayError
from underway.cli.main import main
from underway.postgres import migrate
from underway.postgres.embedded import Cluster
from underway.supervisor.main import Settings
from underway.testing import using_database
from underway.testing.servers import temporary_cluster

# Needs quoting in a URL, so that it may leak in two spellings.
SECRET = "open sesame/%1"
SPELLINGS = (SECRET, quote(SECRET, safe=""), "sesame")

ADMIN, SUPERVISOR = "underway.cli.main", "underway.cli.supervisor"
APP = f"{APPS}/basic.py:app"
COMMANDS = [
    (ADMIN, *words)
    for words in (
        ("migrate",), ("sync", APP), ("list",), ("list", "--json"), ("show", "00"), ("attempts", "00"),
        ("cancel", "00"), ("retry", "00"), ("queues",), ("pause", "q"), ("resume", "q"), ("supervisors",),
        ("shutdown", "--all"), ("schedules",), ("dead-letters",), ("quarantine",), ("redrive", "--label", "x"),
        ("discard", "--label", "x"), ("replay", APP, "00"), ("health",),
    )
] + [(SUPERVISOR, APP, "--procs", "1", "--verbose")]  # fmt: skip

BROKEN = {
    "refused": f"postgresql://me:{quote(SECRET, safe='')}@127.0.0.1:1/nowhere",
    "refused, key=value": f"host=127.0.0.1 port=1 user=me password='{SECRET}'",
    "unknown host": f"postgresql://me:{quote(SECRET, safe='')}@no-such-host.invalid/nowhere",
    "bad port": f"postgresql://me:{quote(SECRET, safe='')}@127.0.0.1:port/nowhere",
    "not quoted": f"postgresql://me:{SECRET}@127.0.0.1:1/nowhere",
    "no setting": f"host=127.0.0.1 port=1 password='{SECRET}' no_such_setting=1",
    "open quote": f"host=127.0.0.1 password='{SECRET}",
    "no url": f"postgresql//me:{SECRET}@127.0.0.1",
    "two hosts": f"postgresql://me:{quote(SECRET, safe='')}@127.0.0.1:1,127.0.0.1:2/nowhere",
}


def leaks_in(text: str) -> list[str]:
    return [spelling for spelling in SPELLINGS if spelling in text]


def command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
    )


@pytest.fixture(scope="module")
def guarded() -> Iterator[Cluster]:
    """A server that requires passwords."""
    with temporary_cluster() as cluster:
        (cluster.data / "pg_hba.conf").write_text("local all postgres trust\nlocal all all scram-sha-256\n")
        with psycopg.connect(cluster.url("postgres"), autocommit=True) as superuser:
            superuser.execute(sql.SQL("create role me superuser login password {}").format(SECRET))
            superuser.execute("select pg_reload_conf()")
        wrong = make_conninfo(cluster.url("postgres"), user="me", password="wrong")
        eventually(lambda: refuses(wrong))
        yield cluster


def refuses(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return True
    return False


_numbers = itertools.count()


@pytest.fixture
def with_password(guarded: Cluster) -> str:
    """The URL of a migrated database that requires the secret."""
    name = f"secretive_{next(_numbers)}"
    guarded.create_database(name)
    with psycopg.connect(guarded.url(name)) as connection:
        migrate.migrate(connection)
    return make_conninfo(guarded.url(name), user="me", password=SECRET)


def test_every_command_is_here() -> None:
    tried = {words[1] for words in COMMANDS if words[0] == ADMIN}
    assert tried == set(main.commands) - {"db"}, "all commands with --database are tested"


# Each of these starts processes. tests/sql/test_migrate.py also tests what they have in common.
QUICK = ("refused", "no url")


@pytest.mark.parametrize(
    "broken", [pytest.param(name, marks=() if name in QUICK else pytest.mark.chaos) for name in BROKEN]
)
def test_no_error_contains_it(broken: str) -> None:
    """Given as an option and in the environment. Except migrate and sync, all commands connect in one place."""
    url = BROKEN[broken]
    for words in [(ADMIN, "sync", APP), (SUPERVISOR, APP, "--procs", "1")]:
        done = command(*words, UNDERWAY_DATABASE_URL=url)
        assert done.returncode != 0, words
        assert "Traceback" not in done.stderr, done.stderr
        assert not leaks_in(done.stdout + done.stderr), done.stderr
    done = command(ADMIN, "list", "--database", url)
    assert done.returncode == 1
    assert not leaks_in(done.stdout + done.stderr), done.stderr


@pytest.mark.parametrize("broken", BROKEN)
def test_no_traceback_contains_it(broken: str) -> None:
    """As printed by a user's program that does not catch our errors."""
    app = Underway(BROKEN[broken])
    for call in (app.migrate, app.schedules):
        with pytest.raises((UnderwayError, psycopg.Error)) as raised:
            call()
        printed = "".join(traceback.format_exception(raised.value))
        assert not leaks_in(printed), printed


def test_the_error_of_a_refused_connection_does_not_contain_it(with_password: str) -> None:
    with psycopg.connect(with_password, autocommit=True) as connection:
        connection.execute("update underway.migration set oldest_code = 9999")
    refusals = {
        make_conninfo(with_password, password=f"{SECRET} no more"): "password authentication failed",
        with_password: "install the newer version",
    }
    for url, why in refusals.items():
        for words in [(ADMIN, "migrate"), (SUPERVISOR, APP, "--procs", "1", "--verbose")]:
            done = command(*words, UNDERWAY_DATABASE_URL=url)
            assert done.returncode != 0
            assert why in done.stderr
            assert not leaks_in(done.stdout + done.stderr)


def test_no_output_of_a_command_contains_it(with_password: str) -> None:
    lines = [words[1:] for words in COMMANDS if words[0] == ADMIN and words[1] not in ("sync", "replay")]
    for line in [*lines, *((*line, "--help") for line in lines)]:
        done = underway(*line, database=with_password)
        assert not leaks_in(done.stdout + done.stderr), line
        assert ("Usage:" in done.stdout) == ("--help" in line)
        if line == ("migrate",):
            assert done.stdout == "the schema is up to date\n"
    synced = command(ADMIN, "sync", APP, "--database", with_password)
    assert "registered numbers" in synced.stdout
    assert not leaks_in(synced.stdout + synced.stderr)


@pytest.mark.parametrize("by", ["environment", "option"])
def test_a_running_supervisor_leaks_it_nowhere(
    by: str, guarded: Cluster, with_password: str, start_supervisor: Callable[..., Supervisor]
) -> None:
    options = ["--database", with_password] if by == "option" else []
    environment = {} if by == "option" else {"UNDERWAY_DATABASE_URL": with_password}
    with using_database(basic.app, with_password):
        run = basic.numbers.enqueue(1)
        supervisor = start_supervisor("basic", "--procs", "2", "--verbose", *options, env=environment)
        assert run.result(timeout=30) == 1
        process = psutil.Process(supervisor.pid)
        family = [process, *process.children(recursive=True)]
        assert len(family) >= 4, "supervisor, guardian, workers"
        for member in family:
            arguments = Path(f"/proc/{member.pid}/cmdline").read_bytes().decode()
            assert arguments
            assert not leaks_in(arguments), arguments
        # The log lines about a restart of the server do not contain it either.
        guarded.stop("immediate")
        supervisor.until("cannot connect to the database, trying again")
        guarded.start()
        basic.app.close()
        assert basic.numbers.enqueue(2).result(timeout=30) == 2
    with psycopg.connect(with_password, autocommit=True) as connection:
        tables = ("run", "finished_run", "attempt", "job", "queue", "schedule", "supervisor", "migration")
        for table in tables:
            rows = value(connection, f"select coalesce(string_agg(t::text, ' '), '') from underway.{table} t")
            assert not leaks_in(rows), table
        assert not leaks_in(
            value(connection, "select string_agg(application_name || query, ' ') from pg_stat_activity")
        )
    supervisor.end()
    assert not leaks_in(supervisor.log)


def test_a_command_hides_its_arguments_from_ps() -> None:
    """Also while it waits for a server that does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://me:{quote(SECRET, safe='')}@127.0.0.1:{silent.getsockname()[1]}/nowhere"
        command = [sys.executable, "-m", ADMIN, "list", f"--database={url}"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            try:
                arguments = Path(f"/proc/{process.pid}/cmdline")
                eventually(lambda: b"--database=****" in arguments.read_bytes())
                assert not leaks_in(arguments.read_bytes().decode())
                assert arguments.read_bytes().startswith(os.fsencode(sys.executable) + b"\0-m\0")
            finally:
                process.kill()


def test_the_repr_of_settings_and_apps_does_not_contain_it() -> None:
    url = BROKEN["refused"]
    assert not leaks_in(repr(Settings("app", 1, url)) + repr(Underway(url)))
