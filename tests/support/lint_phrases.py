"""Rejects tell-tale phrases of unidiomatic English; part of `make lint`.

`CLEAN` lists the files and folders that are checked. Add to it as the rest of the repository is edited.
"""

import re
import sys
from pathlib import Path

from places import ROOT

CLEAN = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs", "examples", "benchmarks"),
    "underway",
    *(
        "tests/docs/test_command_line_page.py",
        "tests/system/test_command_line_acts.py",
        "tests/docs/test_readme.py",
        "tests/docs/test_docs.py",
    ),
    "tests/sql",
    *("tests/system/test_cli.py", "tests/system/test_health.py", "tests/support/underway_command.py"),
)
EXEMPT = {"underway/postgres/embedded.py"}  # it names the Unix user nobody
PHRASES = re.compile(
    r"\b(?:so\s+many|of\s+which|somebody|nobody|anybody|whoever|what\s+has|as\s+before)\b"
    r"|(?<!there)\sis\s+no\b(?!\s+longer)",
    re.IGNORECASE,
)
# A fenced block is a program or the output of one.
BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def files() -> list[Path]:
    paths = [ROOT / name for name in CLEAN]
    found = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*.*"))]
    return sorted(file for file in found if file.suffix in (".md", ".py", ".sql") and _relative(file) not in EXEMPT)


def findings(text: str) -> list[tuple[int, str]]:
    """The line number and the phrase of each finding. A phrase may span two lines."""
    return [(text.count("\n", 0, match.start()) + 1, " ".join(match[0].split())) for match in PHRASES.finditer(text)]


def _relative(file: Path) -> str:
    return str(file.relative_to(ROOT))


def _checked_text(file: Path) -> str:
    text = file.read_text()
    return BLOCK.sub(lambda block: "\n" * block[0].count("\n"), text) if file.suffix == ".md" else text


def main() -> int:
    lines = [
        f"{_relative(file)}:{line}: {phrase!r}" for file in files() for line, phrase in findings(_checked_text(file))
    ]
    print(*lines, sep="\n", end="\n" if lines else "")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
