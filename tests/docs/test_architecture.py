"""ARCHITECTURE.md and its neighbours name tests, files and folders that exist."""

import re

import pytest
from places import ROOT, TESTS

PACKAGE = ROOT / "underway"
# Paths are written from the root, from the package, from one of its larger folders or from the tests.
BASES = (ROOT, PACKAGE, PACKAGE / "postgres", PACKAGE / "postgres" / "sql", PACKAGE / "supervisor", TESTS)
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
PROMISE = re.compile(r"^\| (\d+) \| (.+?) \| (.+?) \|$", re.MULTILINE)


def test_each_promise_is_held_by_tests_that_exist() -> None:
    promises = {int(number): tests.split(", ") for number, _, tests in PROMISE.findall(ARCHITECTURE)}
    assert list(promises) == list(range(1, len(promises) + 1))
    tests = {path.stem for path in TESTS.rglob("test_*.py")}
    assert {number: missing for number, named in promises.items() if (missing := {*named} - tests)} == {}


def test_tests_cite_promises_that_exist() -> None:
    numbers = {number for number, _, _ in PROMISE.findall(ARCHITECTURE)}
    cited = {
        path.name: {*re.findall(r"\b[Pp]romises? (\d+)", path.read_text())} - numbers for path in TESTS.rglob("*.py")
    }
    assert {name: unknown for name, unknown in cited.items() if unknown} == {}


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md", "tests/README.md"])
def test_paths_exist(page: str) -> None:
    paths = re.findall(r"`([a-z_]+/[a-z_/]*(?:\w+\.(?:py|sql|md|txt))?)`", (ROOT / page).read_text())
    assert paths
    assert [path for path in paths if not any((base / path).exists() for base in BASES)] == []


def test_every_folder_is_explained() -> None:
    (table,) = re.findall(r"^\| folder \|.*?\n\n", ARCHITECTURE, re.MULTILINE | re.DOTALL)
    explained = set(re.findall(r"`(\w+(?:/|\.py))`", table.split("\n", 2)[2]))
    folders = {f"{path.name}/" for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    modules = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    assert folders | modules <= explained
