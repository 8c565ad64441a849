"""The report of `make chaos`."""

import os
import subprocess
import sys
from pathlib import Path

from chaos_report import LINES, WIDTH
from places import SUPPORT

LOST = '''
    """Nothing is lost in {nth}, with a docstring that is much too long for one line of the report and is wrapped."""
    import pytest

    @pytest.mark.chaos
    @pytest.mark.parametrize("cuts", [1, 2])
    def test_cuts(cuts, count, say):
        say(f"cutting {{cuts}} times")
        count(cuts=cuts, runs=1000, peak_mib=40 + cuts, **{{f"effect {{n}} of many": n for n in range(20)}})
        assert {nth} % 5 or cuts == 1

    def test_quick():
        raise AssertionError("not one of them")
'''


def test_the_report_has_the_counts_and_the_command_to_repeat_it(tmp_path: Path) -> None:
    for nth in range(20):
        lines = [line.removeprefix("    ") for line in LOST.format(nth=nth).strip("\n").splitlines()]
        (tmp_path / f"test_{nth:02}.py").write_text("\n".join(lines))
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = chaos\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "chaos", "-p", "chaos_report", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SUPPORT), "CHAOS_SEED": "7", "CHAOS_SECONDS": "30", "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    progress, _, rest = done.stdout.partition("= FAILURES =")
    assert " 1/40  seed 7  test_" in progress
    assert "cutting 2 times" in progress
    page = rest.partition(" verdict =")[2].partition("\n")[2].partition("====")[0].splitlines()
    assert len(page) <= LINES
    assert [line for line in page if len(line) > WIDTH and "again: " not in line] == []
    assert page[0].startswith("chaos: FAILED, 40 of 40 tests in 0:")
    assert page[1] == "again: CHAOS_SEED=7 CHAOS_SECONDS=30 make chaos"
    again = "  again: CHAOS_SEED=7 CHAOS_SECONDS=30 make chaos ARGS=''\"'\"'test_05.py::test_cuts[2]'\"'\"''"
    assert again in page
    assert any("cuts 3, runs 2,000, peak mib 42" in line for line in page)
