"""A program writes the figures in the documentation, as tables between markers."""

import re
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fake_results import ROWS, result, row

from benchmarks import figures, result_files

TEXTS = {path.name: path for path in (figures.README, figures.PERFORMANCE)}


def block_of(text: str) -> str:
    return text.partition(figures.BEGIN)[2].partition(figures.END)[0]


def tables(text: str) -> list[list[list[str]]]:
    """Each table as lines of cells."""
    found = re.findall(r"^\|.*\|\n(?:\|.*\|(?:\n|\Z))+", text, re.MULTILINE)
    return [[line.strip("|").split("|") for line in table.splitlines()] for table in found]


def given(folder: Path, *results: str) -> list[result_files.ResultFile]:
    for number, text in enumerate(results):
        (folder / f"{number}.json").write_text(text)
    return result_files.load_folder(folder)


@pytest.mark.parametrize("name", TEXTS)
def test_the_committed_figures_are_well_formed(name: str) -> None:
    text = TEXTS[name].read_text()
    block = block_of(text)
    assert figures.rewritten(text, block) == text
    assert tables(block)
    assert len(re.findall("^Measured on ", block.partition("### Peers")[0], re.MULTILINE)) == 1
    for head, rule, *lines in tables(block):
        assert lines, head
        assert set("".join(rule)) == {"-"}
        assert {len(cells) for cells in (rule, *lines)} == {len(head)}
    assert "{{" not in text


def test_every_plot_in_the_documentation_exists() -> None:
    shown = re.findall(r"\]\((plots/.*?)\)", figures.PERFORMANCE.read_text())
    assert all((figures.PERFORMANCE.parent / path).exists() for path in shown)


def test_only_the_text_between_the_markers_changes() -> None:
    text = f"before\n{figures.BEGIN}\nold\n{figures.END}\nafter"
    assert figures.rewritten(text, "new") == text.replace("old", "new")


@pytest.mark.parametrize(
    "text", ["", figures.BEGIN, f"{figures.END}{figures.BEGIN}", f"{figures.BEGIN}{figures.END}" * 2]
)
def test_a_text_without_the_right_markers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="once each"):
        figures.rewritten(text, "new")


def test_the_short_table_has_only_the_measured_rows(tmp_path: Path) -> None:
    (table,) = tables(figures.in_short(given(tmp_path, result(ROWS))))
    assert [[cell.strip() for cell in line] for line in table[2:]] == [
        ["no-op runs a second", "16,000", "40,000", "8,000"],
    ]


def test_a_table_from_several_results_names_the_machine_once(tmp_path: Path) -> None:
    latest = result([row("no-op, two steps", 9_000)], at="2026-01-03T03:04:05+0000", options={"rounds": 2})
    text = figures.in_short(given(tmp_path, result(ROWS), latest))
    assert len(tables(text)[0]) == 4
    (line,) = re.findall("^Measured on .*$", text, re.MULTILINE)
    assert line.startswith("Measured on 2 January 2026 and 3 January 2026, medians of 2 to 3 rounds.")


def test_the_full_text_has_a_table_for_every_section(tmp_path: Path) -> None:
    peers = result([row("no-op", 15_000, fast=8_000)], kind="peers")
    text = figures.in_full(given(tmp_path, result(ROWS), peers), tmp_path)
    headings = re.findall(r"^### (.*)$", text, re.MULTILINE)
    assert headings == [
        "At a glance",
        "CPU microseconds per run, by process",
        "By the length of a step",
        "No-op runs by workers",
        "Steps of 20 ms by workers",
        "By the size of the input",
        "No-op runs by supervisors on this one machine",
        "Steps of 20 ms by supervisors on this one machine",
        "Peers",
    ]
    assert "| 5 ms | 380 | 400 | 0.950 | 400 | 0.950 |" in text
    assert "| fast | 8,000 |" in text
    assert "plots/" not in text
    assert len(tables(text)) == len(headings)


def test_existing_plots_are_shown(tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "latency.png").touch()
    text = figures.in_full(given(tmp_path, result(ROWS)), tmp_path)
    assert re.findall(r"!\[Half of all steps.*?\]\((.*?)\)", text) == ["plots/latency.png"]


def test_the_documented_query_of_attempts_runs(connection: psycopg.Connection[Any]) -> None:
    (query,) = re.findall(r"```sql\n(select step.*?)```", figures.PERFORMANCE.read_text(), re.DOTALL)
    assert connection.execute(query.encode()).fetchall() == []
