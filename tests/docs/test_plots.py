"""The content of the plots, and that they can be drawn."""

from pathlib import Path

import pytest
from fake_results import ROWS, result, row

from benchmarks import result_files
from benchmarks.plots import findings
from benchmarks.plots.plot_data import Bars, Distribution, Panels, Plot

NAMES = ["throughput", "step_length", "growth_workers", "growth_payload", "growth_supervisors", "claims",
         "cpu_by_whom", "latency"]  # fmt: skip


def plots(folder: Path, *results: str) -> dict[str, Plot]:
    for number, text in enumerate(results):
        (folder / f"{number}.json").write_text(text)
    return {plot.name: plot for plot in findings.plots(result_files.load_folder(folder))}


def test_a_full_result_gives_every_plot(tmp_path: Path) -> None:
    assert list(plots(tmp_path, result(ROWS))) == NAMES


def test_a_plot_without_rows_is_left_out(tmp_path: Path) -> None:
    assert list(plots(tmp_path, result(ROWS[1:2]))) == ["latency"]
    assert plots(tmp_path, result([])) == {}


def test_a_file_that_is_not_a_result_is_skipped(tmp_path: Path) -> None:
    assert list(plots(tmp_path, '{"at": "then"}', "[]", "not json", result(ROWS[1:2]))) == ["latency"]


def test_titles_state_the_findings(tmp_path: Path) -> None:
    drawn = plots(tmp_path, result(ROWS))
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


def test_plots_contain_the_measured_values(tmp_path: Path) -> None:
    drawn = plots(tmp_path, result(ROWS))
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


def test_each_plot_uses_the_newest_result_with_its_rows(tmp_path: Path) -> None:
    newer = result([row("no-op, one step", 20_000)], at="2026-02-02T00:00:00+0000")
    drawn = plots(tmp_path, newer, result(ROWS))
    assert "20,000" in drawn["throughput"].title
    assert "2 February 2026" in drawn["throughput"].footer
    assert "2 January 2026" in drawn["latency"].footer


def test_the_peer_plot_compares_underway_with_each_peer(tmp_path: Path) -> None:
    peers = result([row("no-op", 15_000, fast=8_000, slow=500)], kind="peers", at="2026-02-02T00:00:00+0000")
    plot = plots(tmp_path, result(ROWS), peers)["peers"]
    assert "1.9 times fast, the fastest peer" in plot.title
    assert isinstance(plot.content, Bars)
    assert [bar.label for bar in plot.content.bars if bar.ours] == ["underway"]
    assert {"fast", "slow"} < {bar.label for bar in plot.content.bars}


def test_the_footer_says_that_the_machine_was_disturbed(tmp_path: Path) -> None:
    drawn = plots(tmp_path, result([{**ROWS[0], "disturbed": 0.31}]))
    assert "others used up to 31%" in drawn["throughput"].footer


def test_every_plot_can_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.plots.drawing import draw

    drawn = plots(tmp_path, result(ROWS), result([row("no-op", 1, peer=2)], kind="peers"))
    paths = [draw(plot, tmp_path / "plots") for plot in drawn.values()]
    assert [path.name for path in paths] == [f"{name}.png" for name in [*NAMES, "peers"]]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
