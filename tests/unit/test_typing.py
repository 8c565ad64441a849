"""mypy and pyright infer the types of valid chains, and report each mistake on its line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

GOOD = Path(__file__).parent / "typing_good.py"
BAD = Path(__file__).parent / "typing_bad.py"

Complaints = dict[Path, dict[int, str]]


@pytest.fixture(scope="module", params=["mypy", "pyright"])
def complaints(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Complaints:
    """The messages of a checker in its strictest mode, by file and line."""
    folder = tmp_path_factory.mktemp(request.param)
    return _mypy(folder) if request.param == "mypy" else _pyright(folder)


def test_valid_chains_have_the_expected_types(complaints: Complaints) -> None:
    assert complaints.get(GOOD, {}) == {}


def test_each_mistake_is_reported_on_its_line(complaints: Complaints) -> None:
    expected = {number for number, line in enumerate(BAD.read_text().splitlines(), 1) if line.endswith("  # error")}
    refused = complaints.get(BAD, {})
    lines = BAD.read_text().splitlines()
    assert {number: lines[number - 1] for number in expected - set(refused)} == {}, "mistakes that are not reported"
    assert {number: refused[number] for number in set(refused) - expected} == {}, "reports without a mistake"


def _mypy(folder: Path) -> Complaints:
    command = [sys.executable, "-m", "mypy", "--strict", "--output=json", f"--cache-dir={folder}", str(GOOD), str(BAD)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=GOOD.parent.parent)
    assert done.returncode == 1, done.stderr or done.stdout  # 2: an error of mypy itself
    found: Complaints = {}
    for line in done.stdout.splitlines():
        said = json.loads(line)
        if said["severity"] == "error":
            _note(found, GOOD.parent.parent / said["file"], said["line"], said["message"])
    return found


def _pyright(folder: Path) -> Complaints:
    """pyright needs Node.js, which its package downloads or finds; otherwise the test is skipped."""
    # It accepts no files together with a configuration, and the configuration accepts relative paths only.
    config = {
        "include": [os.path.relpath(file, folder) for file in (GOOD, BAD)],
        "typeCheckingMode": "strict",
        "pythonVersion": "3.11",
    }
    (folder / "pyrightconfig.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        pytest.skip(f"pyright does not run here: {(done.stderr or done.stdout).strip()[-300:]}")
    assert report["summary"]["filesAnalyzed"] == 2
    found: Complaints = {}
    for said in report["generalDiagnostics"]:
        if said["severity"] == "error":
            _note(found, Path(said["file"]), said["range"]["start"]["line"] + 1, said["message"])
    return found


def _note(found: Complaints, file: Path, line: int, message: str) -> None:
    found.setdefault(file, {}).setdefault(line, message)
