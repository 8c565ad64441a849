"""The examples, executed as a user would."""

import os
import re
import signal
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from harness import eventually, states
from places import ROOT

from examples.flights import demo as demo_program

ROOT = ROOT


def python(*arguments: str, database: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "UNDERWAY_DATABASE_URL": database},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def example(name: str, database: str, cwd: Path) -> str:
    """The output of an example."""
    ended = python(str(ROOT / "examples" / name), database=database, cwd=cwd)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def demo(database: str, reports: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    return python("-m", "examples.flights.demo", "--reports", str(reports), *options, database=database)


def pdfs(reports: Path) -> dict[Path, float]:
    """The existing reports with their modification times."""
    return {path: path.stat().st_mtime for path in reports.glob("*/*.pdf")}


def check_reports(reports: Path, expected: int) -> None:
    found = pdfs(reports)
    assert len(found) == expected
    for path in found:
        content = path.read_bytes()
        assert content.startswith(b"%PDF")
        assert len(re.findall(rb"/Type /Page\b", content)) in (2, 3), path
    assert not list(reports.glob("*/.*.draft"))


def rendered_once(connection: psycopg.Connection[Any]) -> bool:
    counts = connection.execute(
        "select count(*) from underway.attempt where step in ('render', 'file') group by run_id, step"
    ).fetchall()
    return {count for (count,) in counts} == {1}


def test_welcome_email(database: str, tmp_path: Path) -> None:
    assert example("welcome_email.py", database, tmp_path) == "succeeded: welcomed Ferris\n"


def test_a_failing_email_does_not_render_the_receipt_again(database: str, tmp_path: Path) -> None:
    receipt = tmp_path / "reports/receipts/42.pdf"
    assert example("order_receipts.py", database, tmp_path).splitlines() == [
        "generate 1: succeeded",
        "email 1: failed",
        "email 2: failed",
        "email 3: succeeded",
        "PDFs rendered: 1",
        f"succeeded: emailed {receipt}",
    ]
    assert receipt.read_bytes().startswith(b"%PDF")


def test_daily_reports(database: str, connection: psycopg.Connection[Any], tmp_path: Path) -> None:
    first = example("daily_reports.py", database, tmp_path).splitlines()
    slots = [re.fullmatch(r"scheduled for (\d{4}-\d\d-\d\d) 00:00 P[SD]T", line) for line in first[:3]]
    days = [date.fromisoformat(slot[1]) for slot in slots if slot is not None]
    assert [day - days[0] for day in days] == [timedelta(days=0), timedelta(days=1), timedelta(days=2)]
    assert re.fullmatch(r"succeeded: report of site 42 for \w+day, \d{4}-\d\d-\d\d", first[3])

    # Two nights later it catches up the latest slot, with the day that ended then.
    connection.execute("update underway.schedule set next_at = next_at - interval '2 days'")
    second = example("daily_reports.py", database, tmp_path).splitlines()
    assert second[2] == first[0]
    results = "select result from underway.finished_run where scheduled_at is not null"
    ended = days[0] - timedelta(days=2)
    assert connection.execute(results).fetchall() == [(f"report of site 42 for {ended:%A}, {ended}",)]


def test_an_interrupted_demo_resumes_and_reports_when_it_is_done(
    database: str, connection: psycopg.Connection[Any], tmp_path: Path
) -> None:
    # Enough reports for the interrupt to find some of them waiting. Each worker reads the flights, so one suffices.
    total = 8
    options = ["--limit", str(total), "--procs", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "examples.flights.demo", "--reports", str(tmp_path), *options],
        cwd=ROOT,
        env={**os.environ, "UNDERWAY_DATABASE_URL": database},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    eventually(lambda: len(pdfs(tmp_path)) >= 2, within=40, what="the first reports")
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 130, said
    before = pdfs(tmp_path)
    assert f"Stopped with {len(before)} of {total} reports" in said
    assert "Run the same command again to resume" in said
    assert 2 <= len(before) < total
    assert states(connection).get("in_progress", 0) == 0

    # A report that was removed is rendered again.
    removed = before.popitem()[0]
    removed.unlink()
    again = demo(database, tmp_path, *options)
    assert again.returncode == 0, again.stdout + again.stderr
    left = total - len(before) - 1
    assert f"{len(before)} already exist, {left} left over, 1 newly ordered\n" in again.stdout
    assert f"{left + 1} reports in " in again.stdout
    assert str(tmp_path) in again.stdout
    for step in ("select", "compute", "render", "file"):
        assert re.search(rf"^{step} +8 +8 +\d+\.\d +\d+\.\d +[1-9]\d* MiB", again.stdout, re.MULTILINE), again.stdout
    assert re.search(r"^all +8 +32 ", again.stdout, re.MULTILINE), again.stdout
    check_reports(tmp_path, total)
    after = pdfs(tmp_path)
    assert {path: after[path] for path in before} == before
    assert states(connection) == {"succeeded": total + 1}
    assert rendered_once(connection)

    idle = demo(database, tmp_path, *options)
    assert idle.returncode == 0
    assert f"All {total} reports already exist" in idle.stdout
    assert "--again" in idle.stdout
    assert states(connection) == {"succeeded": total + 1}


@pytest.mark.parametrize("option", ["--procs", "--limit"])
def test_demo_refuses_invalid_numbers(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["demo", option, "0"])
    with pytest.raises(SystemExit) as ended:
        demo_program.main()
    assert ended.value.code == 2
    assert "must be at least 1" in capsys.readouterr().err
