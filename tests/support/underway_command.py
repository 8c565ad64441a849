"""Runs the command `underway` in this process, or in its own, which takes a quarter of a second for imports."""

import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Mapping
from typing import Any

import click
from click.testing import CliRunner
from places import APPS

from underway.cli.main import main

Done = subprocess.CompletedProcess[str]

# Unset the variables that a developer may have set.
NEUTRAL: Mapping[str, str | None] = dict.fromkeys(
    ("UNDERWAY_DATABASE_URL", "DATABASE_URL", "COLUMNS", "LINES", "NO_COLOR")
)


def underway(*arguments: str, database: str | None = None, columns: int | None = 80) -> Done:
    """Run it in this process, with this terminal width; None: its output is piped."""
    assert arguments[:1] not in (("sync",), ("replay",)), "these replace the process by exec"
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
    """Run it in a separate process."""
    environment = {key: value for key, value in os.environ.items() if key not in NEUTRAL}
    return subprocess.run(
        [sys.executable, "-m", "underway.cli.main", *arguments],
        capture_output=True,
        text=True,
        env={**environment, **_named(database, columns), **(env or {})},
        cwd=APPS,
        timeout=60,
    )


def _named(database: str | None, columns: int | None) -> dict[str, str]:
    environment = {} if database is None else {"UNDERWAY_DATABASE_URL": database}
    return environment if columns is None else {**environment, "COLUMNS": str(columns)}


def output(*arguments: str, database: str, columns: int | None = 80) -> str:
    """The output of a command that succeeds."""
    done = underway(*arguments, database=database, columns=columns)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def document(*arguments: str, database: str) -> Any:
    """The output with --json, parsed."""
    return json.loads(output(*arguments, "--json", database=database))


def refusal(*arguments: str, database: str, code: int = 1) -> str:
    """The message of a command that fails."""
    done = underway(*arguments, database=database)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def width(line: str) -> int:
    """The width in terminal columns."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in line)


def widest(text: str) -> int:
    return max(map(width, text.splitlines()))
