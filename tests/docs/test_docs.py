"""Runs the programs in docs/*.md as a reader would: those of a page in order, on their own migrated database.

A Python block is a program, or a module of a later one; its first line names the file: `# shop.py`. SQL blocks are
executed in between, and a supervisor that is started in a console block runs to the end of the page. Programs assert
their claims, or state their output: `# prints ...`. Files named test_*.py are run by pytest.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlencode

import click
import psutil
import psycopg
import pytest
from harness import Supervisor, lives
from places import ROOT
from psycopg.conninfo import conninfo_to_dict

from underway.cli import main, supervisor

DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(python|sql|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTS = re.compile(r"  # prints (.+)$", re.MULTILINE)
# Roles belong to the whole server, so test_roles.py runs that page, with its own names. docs/api.md continues the
# README: test_readme.py runs both.
ELSEWHERE = {"security", "api"}
PAGES = {
    page.stem: blocks
    for page in sorted(DOCS.glob("*.md"))
    if page.stem not in ELSEWHERE and (blocks := BLOCK.findall(page.read_text()))
}


@pytest.mark.parametrize("page", PAGES)
def test_the_programs_of_a_page_run(
    page: str, server: str, database: str, tmp_path: Path, start_supervisor: Callable[..., Supervisor]
) -> None:
    environment = {
        **os.environ,
        "UNDERWAY_DATABASE_URL": as_url(database),
        "UNDERWAY_TEST_DATABASE_URL": as_url(server),
    }
    for language, text in PAGES[page]:
        if language == "sql":
            with psycopg.connect(database) as connection:
                connection.execute(text)
            continue
        if language == "console":
            (served,) = re.findall(r"^\$ underway-supervisor (\w+):app$", text, re.MULTILINE)
            start_supervisor(f"{tmp_path / served}.py:app", "--procs", "1").until("serving")
            continue
        name = re.match(r"# (\w+\.py)\n", text)
        assert name is not None, f"a block of docs/{page}.md does not name its file: {text[:60]!r}"
        (tmp_path / name[1]).write_text(text)
        command = ["-m", "pytest", "-p", "no:cacheprovider"] if name[1].startswith("test_") else []
        with program([*command, name[1]], tmp_path, environment) as started:
            printed, complaints = started.communicate(timeout=60)
        assert started.returncode == 0, f"{name[1]}\n{printed}\n{complaints}"
        for line in PRINTS.findall(text):
            assert line in printed.splitlines(), f"{name[1]}\n{printed}"


@contextmanager
def program(arguments: list[str], folder: Path, environment: dict[str, str]) -> "Iterator[subprocess.Popen[str]]":
    """Run a Python program in its own session; no process of that session may remain after its exit."""
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as started:
        try:
            yield started
            left = [" ".join(process.cmdline()) for process in session_of(started) if process.pid != started.pid]
            assert not left, f"processes left behind: {left}"
        finally:
            for process in session_of(started):
                process.kill()


def session_of(leader: "subprocess.Popen[str]") -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError):
            if os.getsid(process.pid) == leader.pid and lives(process):
                found.append(process)
    return found


# The program's supervisor never serves, and its first sleep raises.
FAILING = """
import runpy, subprocess, sys, time

def fail(seconds):
    raise RuntimeError("the program fails")

start, nap = subprocess.Popen, [sys.executable, "-c", "import time; time.sleep(100)"]
subprocess.Popen = lambda command, **options: start(nap, **options)
time.sleep = fail
runpy.run_path(sys.argv[1], run_name="__main__")
"""
STARTS_A_SUPERVISOR = [page for page, blocks in PAGES.items() if any("Popen" in text for _, text in blocks)]


@pytest.mark.parametrize("page", STARTS_A_SUPERVISOR)
def test_a_program_that_fails_leaves_no_supervisor_behind(page: str, database: str, tmp_path: Path) -> None:
    """The program's supervisor is replaced by a process that only sleeps."""
    (text,) = (text for _, text in PAGES[page] if "Popen" in text)
    (tmp_path / text.split()[1]).write_text(text)
    environment = {**os.environ, "UNDERWAY_DATABASE_URL": as_url(database)}
    with program(["-c", FAILING, text.split()[1]], tmp_path, environment) as started:
        _, complaints = started.communicate(timeout=60)
    assert "the program fails" in complaints


def as_url(conninfo: str) -> str:
    """The connection string as a URL, which every driver accepts."""
    given = conninfo_to_dict(conninfo)
    return f"postgresql:///{given.pop('dbname')}?{urlencode(given)}"


def test_every_page_that_is_linked_exists() -> None:
    for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]:
        for link in re.findall(r"\]\(([\w./-]+\.md)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


# As a line, after a path or Docker's CMD, up to a comment or a pipe; and as the list form of containers.
COMMAND = re.compile(r"(?:^|/|CMD )(underway(?:-supervisor)? .*?)(?:  | [#|]|$)", re.MULTILINE)
COMMAND_AS_LIST = re.compile(r"\[(\"?underway(?:-supervisor)?\"?,.*?)\]")


def test_the_commands_that_are_shown_exist() -> None:
    shown = set()
    for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]:
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
            if language in ("python", "sql", "text"):
                continue
            shown |= {*COMMAND.findall(block), *(found.replace(",", " ") for found in COMMAND_AS_LIST.findall(block))}
    assert {'"underway-supervisor"  "shop:app"  "--procs"  "4"', "underway health", "underway migrate"} <= shown
    for line in shown:
        name, *arguments = shlex.split(line)
        command: click.Command = supervisor.main
        if name == "underway":
            assert arguments[0] in main.main.commands, line
            command = main.main.commands[arguments.pop(0)]
        command.make_context(name, arguments)  # raises UsageError


def test_what_stops_a_supervisor_gives_it_time() -> None:
    told = r"(?:TimeoutStopSec=|--stop-timeout |stop_grace_period: |terminationGracePeriodSeconds: )(\d+)"
    times = re.findall(told, (DOCS / "deploying.md").read_text())
    assert len(times) == 4
    given = supervisor.main.make_context("underway-supervisor", ["shop:app"]).params
    assert min(map(int, times)) >= given["grace"] + 25
