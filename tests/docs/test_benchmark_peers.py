"""The harness of the comparison with other queues. Only underway runs in it: the peers are not installed here."""

import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from places import ROOT

from benchmarks.machine import Machine
from benchmarks.peers import environments
from benchmarks.peers.measures import Sizes, Survival
from benchmarks.peers.peers import PEERS
from benchmarks.peers.table import WIDTH, Result, Row, footer, legend, table
from benchmarks.report import Circumstances

_ROOT = ROOT
_PIN = re.compile(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*")


@pytest.mark.chaos
@pytest.mark.skipif(sys.platform != "linux", reason="process trees need a subreaper")
def test_underway_passes_through_the_harness() -> None:
    measures = ["--only", "noop", "--only", "latency", "--only", "killed"]
    arguments = ["underway", "--here", "--quick", "--runs", "8", "--rescue", "1", *measures]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", *arguments],
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    Path(done.stdout.split()[-1]).unlink()
    assert "failed" not in done.stdout, done.stdout
    row = next(line for line in done.stdout.splitlines() if line.startswith("underway here"))
    *_, once, again, twice, stuck, lost, _seconds = row.split()
    # Twice: tasks that had ended but were not yet committed, at most those of a tenth of a second.
    assert int(once) + int(again) + int(twice) == 8
    assert (stuck, lost) == ("0", "0")


def test_the_table_has_a_row_for_each_failed_peer() -> None:
    ours, rival, absent = (Row(PEERS[name], "1.2.3") for name in ("underway", "pgqueuer", "celery"))
    ours.noop = {PEERS["underway"].fast[0].text: [30_000.0, 33_000.0]}
    rival.noop = {
        PEERS["pgqueuer"].fast[0].text: [10_000.0, None],
        PEERS["pgqueuer"].fast[1].text: [12_000.0, 11_000.0],
    }
    ours.cpu = {20: [98.0, 96.0]}
    ours.latency = [[2.5, 3.5], None]
    ours.killed = [Survival(100, 98, 2, 0, 0, 0, 12.3), Survival(100, 97, 2, 0, 1, 0, 75.0)]
    rival.failures["latency"] = "its worker exited"
    absent.failures["everything"] = "cannot create its environment: ERROR: no such release"
    result = Result([ours, rival, absent], {20: [100.0, 100.0]})

    lines = table(result, Sizes()).splitlines()
    assert " ".join(lines[3].split()) == "underway 1.2.3 yes 31,500 0.970 3.0 3.5 195 4 0 1 0 >75"
    assert " ".join(lines[4].split()) == "pgqueuer 1.2.3 yes 11,500 2.75 x"
    assert " ".join(lines[5].split()) == "celery 1.2.3 no"

    about = Circumstances(Machine("a CPU", 2, "3.11", "18", {"fsync": "on"}, "abc"), 0.1, 0.2, [0.01], 60)
    explained = legend(result, Sizes())
    assert f"tried: {PEERS['pgqueuer'].fast[0].text} 10,000" in explained
    assert "pgqueuer: latency failed: its worker exited" in explained
    assert "celery: everything failed: cannot create its environment" in explained
    below = footer(result, about, "7.0")
    assert "pgqueuer's best with no-ops: 2.75 x, met" in below
    assert max(map(len, [*lines, *explained.splitlines(), *below.splitlines()])) <= WIDTH
    assert asdict(result)


@pytest.mark.parametrize("name", PEERS)
def test_requirements_are_names_and_exact_versions(name: str) -> None:
    lines = environments.requirements_file(name).read_text().splitlines()
    assert lines
    assert [line for line in lines if not _PIN.fullmatch(line)] == []


def test_underway_is_measured_with_the_versions_it_is_tested_with() -> None:
    pins = environments.requirements_file("underway").read_text().splitlines()
    assert set(pins) <= set((_ROOT / "constraints.txt").read_text().splitlines())
