"""The command `underway` as a shell runs it."""

import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def underway(
    *arguments: str, database: str | None = None, columns: int | None = 80, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run it in a terminal so wide; None: its output is piped, and no width is known."""
    named = ("UNDERWAY_DATABASE_URL", "DATABASE_URL", "COLUMNS", "LINES", "NO_COLOR")
    environment = {key: value for key, value in os.environ.items() if key not in named}
    if database is not None:
        environment["UNDERWAY_DATABASE_URL"] = database
    if columns is not None:
        environment["COLUMNS"] = str(columns)
    return subprocess.run(
        [sys.executable, "-m", "underway.cli.admin", *arguments],
        capture_output=True,
        text=True,
        env={**environment, **(env or {})},
        cwd=Path(__file__).parent / "apps",
        timeout=60,
    )


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


_MANY = """
import json, sys
from click.testing import CliRunner
from underway.cli.admin import main
for line in json.load(sys.stdin):
    done = CliRunner().invoke(main, line.split(" "))
    print(json.dumps([line, [done.exit_code, done.output]]))
"""


def in_one_process(lines: list[str], *, database: str) -> dict[str, tuple[int, str]]:
    """Exit code and output of each of these command lines; for where there are many, and each is only a little."""
    done = subprocess.run(
        [sys.executable, "-c", _MANY],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        env={**os.environ, "UNDERWAY_DATABASE_URL": database},
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return dict(map(json.loads, done.stdout.splitlines()))


def width(line: str) -> int:
    """In columns of a terminal."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in line)


def widest(text: str) -> int:
    return max(map(width, text.splitlines()))
