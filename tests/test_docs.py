"""The programs in docs/*.md, as a reader would run them: each page with a python block that names its file."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PROGRAM = re.compile(r"^```python\n# (\w+\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What a program prints stands behind the print, as a comment.
PRINTS = re.compile(r"print\(.*\)  # (.+)$", re.MULTILINE)

PROGRAMS = [
    pytest.param(name, program, id=f"{page.name}:{name}")
    for page in sorted(DOCS.glob("*.md"))
    for name, program in PROGRAM.findall(page.read_text())
]


@pytest.mark.timeout(90)
@pytest.mark.parametrize(("name", "program"), PROGRAMS)
def test_a_program_does_what_its_page_says(empty_database: str, tmp_path: Path, name: str, program: str) -> None:
    (tmp_path / name).write_text(program)
    done = subprocess.run(
        [sys.executable, name],
        cwd=tmp_path,
        env={**os.environ, "UNDERWAY_DATABASE_URL": empty_database},
        text=True,
        capture_output=True,
        timeout=80,
    )
    assert done.returncode == 0, done.stderr
    for line in PRINTS.findall(program):
        assert line in done.stdout.splitlines()
