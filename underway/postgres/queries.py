"""Loads SQL from `sql/`: the named statements, and the files of the other folders.

A file of `sql/statements` contains statements. Each begins with a line `-- name: purpose` and ends where the next one
begins; comment lines that follow the first are for readers.

Text that several statements have in common is a file of `sql/fragments`. A line `:name`, like a variable in psql,
stands for it.
"""

import re
from functools import cache
from importlib.resources import files
from textwrap import indent
from typing import LiteralString

_HEADING = re.compile(r"^-- ([a-z_]+): .+$", re.MULTILINE)
_FRAGMENT = re.compile(r"^( *):(\w+)$", re.MULTILINE)


@cache
def statements() -> dict[str, LiteralString]:
    """Every statement by its name. They are our own files, hence literal to psycopg's type check."""
    found: dict[str, LiteralString] = {}
    for text in read("statements").values():
        parts = _HEADING.split(text)
        for name, statement in zip(parts[1::2], parts[2::2], strict=True):
            if name in found:
                raise ValueError(f"two statements are named {name!r}")
            found[name] = _without_comments(statement).rstrip(";")
            if not found[name]:  # a line of a comment that happens to look like a heading
                raise ValueError(f"{name!r} is not followed by a statement")
    return found


def read(folder: str) -> dict[str, LiteralString]:
    """The text of each file in a folder of `sql/`, by its name without `.sql`, with fragments inserted."""
    return {name: _FRAGMENT.sub(_fragment, text) for name, text in _texts(folder).items()}


def _fragment(line: re.Match[str]) -> str:
    return indent(_without_comments(_texts("fragments")[line[2]]), line[1])


@cache
def _texts(folder: str) -> dict[str, LiteralString]:
    paths = files("underway.postgres").joinpath("sql", folder).iterdir()
    found = sorted((path for path in paths if path.name.endswith(".sql")), key=lambda path: path.name)
    return {path.name.removesuffix(".sql"): path.read_text() for path in found}


def _without_comments(text: LiteralString) -> LiteralString:
    return "\n".join(line for line in text.splitlines() if not line.startswith("--")).strip()
