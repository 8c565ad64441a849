"""The benchmarks run to completion. Their figures are not tested."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

_ROOT = ROOT


# Running all benchmarks starts dozens of supervisors.
_FEW = ["noop", "latency"]


@pytest.mark.timeout(220)
@pytest.mark.parametrize("chosen", [_FEW, pytest.param([], marks=pytest.mark.chaos)], ids=["few", "all"])
def test_the_benchmarks_run(chosen: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--rounds", "1", "--runs", "10", *chosen],
        cwd=_ROOT,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    table, result = done.stdout, Path(done.stdout.split()[-1])
    try:
        rows = json.loads(result.read_text())["rows"]
    finally:
        result.unlink()
    for name in ("no-op, one step", "idle latency, median"):
        assert name in table
        assert name in [row["name"] for row in rows]
    for row in rows:
        # In this short time, an idle supervisor may use less CPU than can be measured.
        least = 0 if row["name"].startswith("idle CPU") else 1e-9
        assert all(sample >= least for samples in row["samples"].values() for sample in samples), row
    # The table must fit a terminal.
    assert max(map(len, table.partition("\n\n")[0].splitlines())) <= 120
    assert "fsync on" in table
