"""The two commands as users see them: help, errors, exit codes."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from places import APPS
from underway_command import run_here

from underway.cli import main as admin
from underway.cli import supervisor
from underway.cli.in_app.app import loaded_app
from underway.supervisor.exit_codes import EXIT_CODES

ADMIN = "underway.cli.main"
SUPERVISOR = "underway.cli.supervisor"
Run = Callable[..., subprocess.CompletedProcess[str]]
NOWHERE = "host=127.0.0.1 port=1 user=me password=hunter2"


def command(
    module: str, *arguments: str, database: str | None = None, cwd: Path = APPS
) -> subprocess.CompletedProcess[str]:
    named = ("UNDERWAY_DATABASE_URL", "DATABASE_URL")
    environment = {key: value for key, value in os.environ.items() if key not in named}
    if database is not None:
        environment["UNDERWAY_DATABASE_URL"] = database
    # A wide terminal must not change the output.
    environment |= {"COLUMNS": "200", "LINES": "50"}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, env=environment, cwd=cwd, timeout=60
    )


def here(module: str, *arguments: str, database: str | None = None) -> subprocess.CompletedProcess[str]:
    """The same in this process, without the cost of imports: for commands that only print."""
    main = {ADMIN: admin.main, SUPERVISOR: supervisor.main}[module]
    return run_here(main, *arguments, environment={"UNDERWAY_DATABASE_URL": database, "COLUMNS": "200", "LINES": "50"})


HELP = [
    (ADMIN, ()),
    (ADMIN, ("migrate",)),
    (ADMIN, ("list",)),
    (ADMIN, ("shutdown",)),
    (ADMIN, ("db",)),
    (ADMIN, ("db", "stop")),
    (SUPERVISOR, ()),
]


@pytest.mark.parametrize(("module", "arguments"), HELP)
def test_help_fits_a_terminal(module: str, arguments: tuple[str, ...]) -> None:
    done = here(module, *arguments, "--help")
    assert done.returncode == 0
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []
    assert "..." not in done.stdout.replace("[OPTIONS] COMMAND [ARGS]...", "").replace("enqueue(...)", "")


def test_help_lists_the_exit_codes() -> None:
    text = command(SUPERVISOR, "--help").stdout
    for code in EXIT_CODES:
        assert f"\n    {code:d}  {code.name.lower().replace('_', '-')}: " in text
    text = command(ADMIN, "--help").stdout
    for number in (0, 1, 2):
        assert f"\n    {number}  " in text


@pytest.mark.parametrize("name", ["underway", "underway-supervisor"])
def test_the_commands_are_installed_and_print_their_version(name: str) -> None:
    done = subprocess.run([Path(sys.executable).parent / name, "--version"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "version 0." in done.stdout


def test_migrate(empty_database: str) -> None:
    first = command(ADMIN, "migrate", database=empty_database)
    assert (first.returncode, first.stderr) == (0, "")
    assert "applied 0001_initial\n" in first.stdout
    again = command(ADMIN, "migrate", "--database", empty_database, database=NOWHERE)
    assert (again.returncode, again.stdout) == (0, "the schema is up to date\n")
    assert command(ADMIN, "migrate", "--json", database=empty_database).stdout == '{\n  "applied": []\n}\n'


def test_sync(database: str) -> None:
    done = command(ADMIN, "sync", "basic.py:app", database=database)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "registered orders\nregistered numbers\n"
    assert command(ADMIN, "sync", "basic:app", "--database", database, database=NOWHERE).returncode == 0
    with psycopg.connect(database) as connection:
        assert connection.execute("select name, step from underway.job order by name").fetchall() == [
            ("numbers", "number"),
            ("orders", "price"),
        ]


@pytest.mark.parametrize("command_line", [(ADMIN, "sync"), (SUPERVISOR, "--until-idle")])
def test_an_app_without_jobs_is_reported(command_line: tuple[str, str], database: str, tmp_path: Path) -> None:
    (tmp_path / "core.py").write_text("from underway import Underway\n\napp = Underway()\n")
    done = command(*command_line, "core:app", database=database, cwd=tmp_path)
    assert done.returncode == 0
    assert "core:app declares no jobs: import the modules that declare them" in done.stdout + done.stderr


BAD_APPS = {
    "nowhere:app": "no module 'nowhere'",
    "nowhere.py:app": "file not found: ",
    "basic.py:nothing": "basic.py has no attribute 'nothing'",
    "basic.py": "expected module:attribute or path/to/file.py:attribute",
    "basic.py:orders": "basic.py:orders is a Job, not an Underway app",
}


@pytest.mark.parametrize("app", BAD_APPS)
def test_a_bad_app_is_reported(app: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(APPS)
    with pytest.raises(SystemExit, match=rf"^Error: .*{re.escape(BAD_APPS[app])}"), loaded_app(app):
        pass


@pytest.mark.parametrize("app", ["nowhere.py:app", "basic.py:orders"])
def test_a_bad_app(app: str, database: str) -> None:
    done = command(ADMIN, "sync", app, database=database)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert BAD_APPS[app] in done.stderr
    assert "Traceback" not in done.stderr
    supervised = command(SUPERVISOR, app, database=database)
    assert supervised.returncode == 3
    assert BAD_APPS[app] in supervised.stdout + supervised.stderr


def test_an_app_that_raises_gives_a_traceback(tmp_path: Path, database: str) -> None:
    (tmp_path / "raising.py").write_text("raise RuntimeError('on import')\n")
    for module, code in ((ADMIN, 1), (SUPERVISOR, 3)):
        arguments = ["sync"] if module == ADMIN else []
        done = command(module, *arguments, "raising.py:app", database=database, cwd=tmp_path)
        assert done.returncode == code
        assert "RuntimeError: on import" in done.stderr + done.stdout
        assert 'raising.py", line 1' in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("run", "module", "arguments"),
    [
        (here, ADMIN, ("migrate",)),
        (command, ADMIN, ("sync", "basic.py:app")),
        (here, ADMIN, ("list",)),
        (command, SUPERVISOR, ("basic.py:app",)),
    ],
)
class TestDatabases:
    """Every command that needs a database gives the same errors."""

    def test_none_specified(self, run: Run, module: str, arguments: tuple[str, ...]) -> None:
        done = run(module, *arguments, database=None if run is here else "")  # an empty variable is not set
        assert done.returncode == (2 if module == SUPERVISOR else 1)
        assert "no database: set UNDERWAY_DATABASE_URL" in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr

    def test_unreachable(self, run: Run, module: str, arguments: tuple[str, ...]) -> None:
        done = run(module, *arguments, database=NOWHERE)
        assert done.returncode == (5 if module == SUPERVISOR else 1)
        assert "onnection refused" in done.stdout + done.stderr
        assert "cannot connect to the database: " in done.stderr
        assert "hunter2" not in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr

    def test_no_connection_string(self, run: Run, module: str, arguments: tuple[str, ...]) -> None:
        done = run(module, *arguments, database="mysql://me:hunter2@there")
        assert done.returncode == (2 if module == SUPERVISOR else 1)
        assert "invalid database: expected a connection string" in done.stdout + done.stderr
        assert "hunter2" not in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr

    @pytest.mark.parametrize("blank", ["", " "])
    def test_blank(self, blank: str, run: Run, module: str, arguments: tuple[str, ...], database: str) -> None:
        """A blank --database, as from an unset shell variable, must not fall back to another database."""
        done = run(module, *arguments, "--database", blank, database=database)
        assert done.returncode == (2 if module == SUPERVISOR else 1)
        assert "invalid database: expected a connection string" in done.stdout + done.stderr

    def test_without_the_schema(self, run: Run, module: str, arguments: tuple[str, ...], empty_database: str) -> None:
        done = run(module, *arguments, database=empty_database)
        if "migrate" in arguments:
            assert done.returncode == 0
            return
        assert done.returncode == (4 if module == SUPERVISOR else 1)
        assert "run 'underway migrate'" in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments", [(), ("basic.py:app", "--procs", "0"), ("basic.py:app", "--grace", "-1"), ("basic.py:app", "--tries")]
)
def test_wrong_options(arguments: tuple[str, ...]) -> None:
    done = here(SUPERVISOR, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: ")


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (SUPERVISOR, ("basic.py:app", "--grace", "nan")),
        (SUPERVISOR, ("basic.py:app", "--max-age", "NaN")),
        (ADMIN, ("shutdown", "--all", "--wait", "-nan")),
    ],
)
def test_invalid_seconds(module: str, arguments: tuple[str, ...], database: str) -> None:
    """The first of these once gave a grace period that never ended."""
    done = command(module, *arguments, database=database)
    assert done.returncode == 2
    assert f"Invalid value for '{arguments[-2]}': '{arguments[-1]}' is not a number of seconds." in done.stderr


def test_an_unknown_command() -> None:
    done = here(ADMIN, "enqueue")
    assert done.returncode == 2
    assert "No such command 'enqueue'" in done.stderr
