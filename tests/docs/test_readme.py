"""The examples of the README and of docs/api.md, which continues it, as a reader would run them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from places import ROOT

ROOT = ROOT
README = (ROOT / "README.md").read_text()
API = (ROOT / "docs" / "api.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", f"{README}\n{API}", re.MULTILINE | re.DOTALL)


@pytest.mark.timeout(90)
def test_the_examples_run_in_order(empty_database: str, tmp_path: Path) -> None:
    """Unchanged, each from its own file."""
    names = []
    for block in blocks("python"):
        (name,) = re.findall(r"^# (\w+\.py)$", block.splitlines()[0])
        names.append(name)
        (tmp_path / name).write_text(block)
    assert names == ["shop.py", "enqueue.py", "look.py"]
    environment = {**os.environ, "UNDERWAY_DATABASE_URL": empty_database}

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert python("shop.py").endswith("receipts/42.pdf\n")
    run = python("enqueue.py").strip()
    (sql,) = blocks("sql")
    with psycopg.connect(empty_database) as connection:
        connection.execute(sql)
    python("-m", "underway.cli.supervisor", "shop:app", "--until-idle")
    assert "succeeded\nreceipts/43.pdf\ngenerate 1 succeeded" in python("look.py", run)
    with psycopg.connect(empty_database) as connection:
        counts = connection.execute("select state, count(*) from underway.runs group by 1 order by 1").fetchall()
    assert counts == [("cancelled", 1), ("succeeded", 101), ("waiting", 1)]


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_in_the_repository_exists(page: Path) -> None:
    for path in re.findall(r"`((?:underway|tests)/[\w/.]+)`", page.read_text()):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_are_short(page: Path) -> None:
    """Except figures, which a program writes, and the page that consists of them."""
    text = re.sub(r"<!-- figures: begin -->.*?<!-- figures: end -->", "", page.read_text(), flags=re.DOTALL)
    assert page.name == "performance.md" or [line for line in text.splitlines() if len(line) > 120] == []


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 200


def test_the_index_lists_every_page() -> None:
    listed = set(re.findall(r"\]\((\S+?\.md)", (ROOT / "docs" / "README.md").read_text()))
    assert {page.name for page in PAGES[2:]} - {"README.md"} <= listed
