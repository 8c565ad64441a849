"""The command `underway`, in this process; and as a shell runs it, which costs a quarter of a second of imports."""

import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner

from underway.cli.main import main

Done = subprocess.CompletedProcess[str]

# What a developer has set must not show; None: unset.
NEUTRAL: Mapping[str, str | None] = dict.fromkeys(
    ("UNDERWAY_DATABASE_URL", "DATABASE_URL", "COLUMNS", "LINES", "NO_COLOR")
)


def underway(*arguments: str, database: str | None = None, columns: int | None = 80) -> Done:
    """Run it here, as in a terminal so wide; None: its output is piped, and no width is known."""
    assert arguments[:1] not in (("sync",), ("replay",)), "which go on by exec, in place of the tests"
    return run_here(main, *arguments, environment=_named(database, columns))


def run_here(main: click.Command, *arguments: str, environment: Mapping[str, str | None]) -> Done:
    """Run a command in this process."""
    done = CliRunner().invoke(main, arguments, env={**NEUTRAL, **environment})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Done([main.name or "", *arguments], done.exit_code, done.stdout, done.stderr)


def underway_process(
    *arguments: str, database: str | None = None, columns: int | None = 80, env: Mapping[str, str] | None = None
) -> Done:
    """Run it as a shell does."""
    environment = {key: value for key, value in os.environ.items() if key not in NEUTRAL}
    return subprocess.run(
        [sys.executable, "-m", "underway.cli.main", *arguments],
        capture_output=True,
        text=True,
        env={**environment, **_named(database, columns), **(env or {})},
        cwd=Path(__file__).parent / "apps",
        timeout=60,
    )


def _named(database: str | None, columns: int | None) -> dict[str, str]:
    environment = {} if database is None else {"UNDERWAY_DATABASE_URL": database}
    return environment if columns is None else {**environment, "COLUMNS": str(columns)}


def output(*arguments: str, database: str, columns: int | None = 80) -> str:
    """What it prints when all is well; a table's lines are no wider than the terminal."""
    done = underway(*arguments, database=database, columns=columns)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def document(*arguments: str, database: str) -> Any:
    """What it says with --json."""
    return json.loads(output(*arguments, "--json", database=database))


def refusal(*arguments: str, database: str, code: int = 1) -> str:
    """Its message when it cannot do it."""
    done = underway(*arguments, database=database)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def width(line: str) -> int:
    """In columns of a terminal."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in line)


def widest(text: str) -> int:
    return max(map(width, text.splitlines()))
