"""A line of a checklist, and what holds it: tests by name, or the reason why it has no place here."""

import ast
from functools import cache
from typing import NamedTuple

from places import TESTS


class Line(NamedTuple):
    """One thing to hold. `tests` are `file::test`; `why` says how ours differs, or why there is nothing to test."""

    name: str
    tests: tuple[str, ...]
    why: str = ""


def held(name: str, *tests: str, why: str = "") -> Line:
    """Existing tests hold it, where `why` says so by something other than what the original did."""
    return Line(name, tests, why)


def no_place(name: str, why: str) -> Line:
    """Nothing of ours corresponds to it."""
    return Line(name, (), why)


@cache
def names_in(file: str) -> frozenset[str]:
    """The names of the tests in a file below tests/, without `.py`. By reading it, which takes no second."""
    path = next(TESTS.rglob(f"{file.rpartition('/')[2]}.py"), None)
    if path is None:
        return frozenset()
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        functions = [node for node in inside if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        found |= {function.name for function in functions if _is_run(function)}
    return frozenset(found)


def _is_run(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """A test that is never run holds nothing."""
    marks = [ast.unparse(mark) for mark in function.decorator_list]
    never = any(mark.startswith(("pytest.mark.skip", "pytest.mark.xfail")) and "skipif" not in mark for mark in marks)
    return function.name.startswith("test_") and not never


def vanished(lines: "dict[str, Line]") -> dict[str, list[str]]:
    """Which of the tests that hold these lines are not there, by line."""
    gone = {
        number: [test for test in line.tests if test.partition("::")[2] not in names_in(test.partition("::")[0])]
        for number, line in lines.items()
    }
    return {number: tests for number, tests in gone.items() if tests}
