"""Loads the named statements of `sql/statements/*.sql`.

A statement begins with a line `-- name: purpose` and ends where the next one begins; comment lines that follow the
first are for readers.
"""

import re
from functools import cache
from importlib.resources import files
from typing import LiteralString

_HEADING = re.compile(r"^-- ([a-z_]+): .+$", re.MULTILINE)


@cache
def statements() -> dict[str, LiteralString]:
    """Every statement by its name. They are our own files, hence literal to psycopg's type check."""
    found: dict[str, LiteralString] = {}
    for file in sorted(files("underway.postgres").joinpath("sql", "statements").iterdir(), key=lambda file: file.name):
        parts = _HEADING.split(file.read_text())
        for name, text in zip(parts[1::2], parts[2::2], strict=True):
            if name in found:
                raise ValueError(f"two statements are named {name!r}")
            found[name] = _without_comments(text)
            if not found[name]:  # a line of a comment that happens to look like a heading
                raise ValueError(f"{name!r} is not followed by a statement")
    return found


def _without_comments(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("--")).strip().rstrip(";")
