"""What the plots show of a result, and that they can be drawn."""

from pathlib import Path

import pytest
from made_up import ROWS, result, row

from benchmarks import result_files
from benchmarks.plots import findings
from benchmarks.plots.plot_data import Bars, Distribution, Panels, Plot

NAMES = ["throughput", "step_length", "growth_workers", "growth_payload", "growth_supervisors", "claims",
         "cpu_by_whom", "latency"]  # fmt: skip


def pictures(folder: Path, *results: str) -> dict[str, Plot]:
    for number, text in enumerate(results):
        (folder / f"{number}.json").write_text(text)
    return {picture.name: picture for picture in findings.plots(result_files.load_folder(folder))}


def test_a_full_result_gives_every_picture(tmp_path: Path) -> None:
    assert list(pictures(tmp_path, result(ROWS))) == NAMES


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    assert list(pictures(tmp_path, result(ROWS[1:2]))) == ["latency"]
    assert pictures(tmp_path, result([])) == {}


def test_a_file_of_another_form_is_passed_over(tmp_path: Path) -> None:
    assert list(pictures(tmp_path, '{"at": "then"}', "[]", "not json", result(ROWS[1:2]))) == ["latency"]


def test_titles_state_what_the_data_say(tmp_path: Path) -> None:
    drawn = pictures(tmp_path, result(ROWS))
    assert "16,000 no-op runs a second" in drawn["throughput"].title
    assert "2.0 times ProcessPoolExecutor" in drawn["throughput"].title
    assert drawn["step_length"].title.startswith("From 5 ms a step on, at least 90%")
    assert drawn["growth_workers"].title.startswith("2 workers fill 2 cores")
    assert drawn["growth_payload"].title.startswith("Inputs of 1 KiB keep 80%")
    assert "2.00 times as many no-op steps" in drawn["growth_supervisors"].title
    assert "(beside 1M pending) costs 1.5 times" in drawn["claims"].title
    assert "90 microseconds" in drawn["cpu_by_whom"].title
    assert "44% of it in the supervisor" in drawn["cpu_by_whom"].title
    assert drawn["latency"].title == "Half of all steps begin within 3.0 ms of enqueue, 99 of 100 within 9.0 ms"


def test_contents(tmp_path: Path) -> None:
    drawn = pictures(tmp_path, result(ROWS))
    bars, panels, values = drawn["throughput"].content, drawn["growth_workers"].content, drawn["latency"].content
    assert isinstance(bars, Bars)
    assert [(bar.label.split()[0], bar.total, bar.ours) for bar in bars.bars] == [
        ("multiprocessing.Pool", 40_000, False), ("underway", 16_000, True), ("ProcessPoolExecutor", 8_000, False),
    ]  # fmt: skip
    assert isinstance(panels, Panels)
    assert [(panel.heading, panel.ticks, panel.lines[1].values) for panel in panels.panels] == [
        ("No-op steps", ["1", "2"], [9000, 18_000]),
        ("Steps of 20 ms", ["1", "2"], [50, 100]),
    ]
    assert isinstance(values, Distribution)
    assert values.values == [2.0, 3.0, 9.0]


def test_each_picture_is_of_the_newest_result_that_has_its_rows(tmp_path: Path) -> None:
    newer = result([row("no-op, one step", 20_000)], at="2026-02-02T00:00:00+0000")
    drawn = pictures(tmp_path, newer, result(ROWS))
    assert "20,000" in drawn["throughput"].title
    assert "2 February 2026" in drawn["throughput"].footer
    assert "2 January 2026" in drawn["latency"].footer


def test_peers_stand_beside_us(tmp_path: Path) -> None:
    peers = result([row("no-op", 15_000, fast=8_000, slow=500)], kind="peers", at="2026-02-02T00:00:00+0000")
    picture = pictures(tmp_path, result(ROWS), peers)["peers"]
    assert "1.9 times fast, the fastest peer" in picture.title
    assert isinstance(picture.content, Bars)
    assert [bar.label for bar in picture.content.bars if bar.ours] == ["underway"]
    assert {"fast", "slow"} < {bar.label for bar in picture.content.bars}


def test_a_disturbed_result_says_so(tmp_path: Path) -> None:
    drawn = pictures(tmp_path, result([{**ROWS[0], "disturbed": 0.31}]))
    assert "others used up to 31%" in drawn["throughput"].footer


def test_every_picture_can_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.plots.drawing import draw

    drawn = pictures(tmp_path, result(ROWS), result([row("no-op", 1, peer=2)], kind="peers"))
    paths = [draw(picture, tmp_path / "plots") for picture in drawn.values()]
    assert [path.name for path in paths] == [f"{name}.png" for name in [*NAMES, "peers"]]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
