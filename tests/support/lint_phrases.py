"""Rejects tell-tale phrases of unidiomatic English; part of `make lint`.

`CLEAN` lists the files and folders that are checked.
"""

import re
import sys
from pathlib import Path

from places import ROOT

CLEAN = (
    *("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile"),
    *("docs", "examples", "benchmarks", "underway", "tests"),
)
# The first two name the Unix user nobody. The others quote the phrases.
EXEMPT = {
    "underway/postgres/embedded.py",
    "tests/support/pgbouncer.py",
    "CONTRIBUTING.md",
    "tests/support/lint_phrases.py",
}
PHRASES = re.compile(
    r"\b(?:so\s+many|so\s+much|so\s+long|of\s+which|somebody|nobody|anybody|whoever|what\s+has|as\s+before|goes\s+on\s+where)\b"
    r"|\b(?:gives?\s+up\s+(?:what|its)|takes?\s+for)\b|(?<!there)\sis\s+no\b(?!\s+longer)",
    re.IGNORECASE,
)
# A fenced block is a program or the output of one.
BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def files() -> list[Path]:
    paths = [ROOT / name for name in CLEAN]
    found = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*.*"))]
    return sorted(
        file
        for file in found
        if (file.suffix in (".md", ".py", ".sql") or file.name == "Makefile") and _relative(file) not in EXEMPT
    )


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
