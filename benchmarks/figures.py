"""Rewrites the figures in the documentation: python -m benchmarks.figures RESULT.json..."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import click

from benchmarks import result_files
from benchmarks.baselines import EXECUTOR, POOL
from benchmarks.model import OURS, Row
from benchmarks.plots import findings
from benchmarks.report import number
from benchmarks.result_files import OWN, PEERS, ResultFile

ROOT = Path(__file__).parent.parent
README, PERFORMANCE = ROOT / "README.md", ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

# The rows of the README's table, by their text there. If there are two, one cell has both figures.
_IN_SHORT = {
    "no-op runs a second": ["no-op, one step"],
    "no-op runs of two steps a second": ["no-op, two steps"],
    "20 ms of CPU a task, tasks a second": ["CPU, 20 ms a task"],
    "200 ms of CPU a task, tasks a second": ["CPU, 200 ms a task"],
    "from enqueue to the first line of the step, median / 99th percentile, ms": [
        "idle latency, median",
        "idle latency, 99th percentile",
    ],
    "`enqueue_many`, runs a second": ["enqueue_many"],
    "a killed worker's slot is busy again after, ms": ["killed worker's slot busy again"],
}
# For each series: the heading of its table, the head of the first column, and its plot.
_SERIES = {
    "step length": ("By the length of a step", "CPU time of a step", "step_length"),
    "no-op by workers": ("No-op runs by workers", "workers", "growth_workers"),
    "20 ms by workers": ("Steps of 20 ms by workers", "workers", None),
    "payload": ("By the size of the input", "input", "growth_payload"),
    "no-op by supervisors": ("No-op runs by supervisors on this one machine", "supervisors", "growth_supervisors"),
    "20 ms by supervisors": ("Steps of 20 ms by supervisors on this one machine", "supervisors", None),
}

Table = list[list[str]]


@click.command()
@click.argument(
    "results", nargs=-1, required=True, metavar="RESULT.json...", type=click.Path(exists=True, path_type=Path)
)
def main(results: tuple[Path, ...]) -> None:
    """Write figures into README.md and docs/performance.md, each row from the newest RESULT that has it."""
    given = result_files.load_all(results)
    for path, block in ((README, in_short(given)), (PERFORMANCE, in_full(given, PERFORMANCE.parent))):
        path.write_text(rewritten(path.read_text(), block))
        print(path)


def rewritten(text: str, block: str) -> str:
    """The text with `block` between its markers. Raises ValueError unless each marker occurs once, in order."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in before + after:
        raise ValueError(f"expected {BEGIN} and then {END}, once each")
    return f"{before}{BEGIN}\n{block.strip()}\n{END}{after}"


def in_short(results: Sequence[ResultFile]) -> str:
    rows = _newest(results)
    table = [["", OURS, f"`{POOL}`", f"`{EXECUTOR}`"]]
    used = []
    for words, names in _IN_SHORT.items():
        found = [rows[name] for name in names if name in rows]
        if len(found) == len(names):
            used += found
            ours = " / ".join(_rounded(row.ours) for row in found)
            if found[0].judged_by == POOL:
                ours += f" ({found[0].ratio(POOL):.2f} of Pool)"
            table.append([words, ours, *(_baselines(found, baseline) for baseline in (POOL, EXECUTOR))])
    return f"{_circumstances(results, used)}\n\n{markdown(table)}"


def _baselines(rows: list[Row], wanted: str) -> str:
    """A baseline's name may continue after the pool's name, as in "ProcessPoolExecutor, rebuilt"."""
    names = [next((baseline for baseline in row.baselines if baseline.startswith(wanted)), None) for row in rows]
    return " / ".join(_rounded(row.baseline(name)) for row, name in zip(rows, names, strict=True) if name is not None)


def _rounded(value: float) -> str:
    """Rounded to three significant digits."""
    return number(float(f"{value:.3g}"))


def in_full(results: Sequence[ResultFile], folder: Path) -> str:
    """Tables with every row, and those plots that exist in `plots` of this folder."""
    rows = list(_newest(results).values())
    plots = {plot.name: f"![{plot.title}](plots/{plot.name}.png)" for plot in findings.plots(results)}

    def section(heading: str, table: Table, *names: str | None) -> list[str]:
        shown = [plots[name] for name in names if name in plots and (folder / "plots" / f"{name}.png").exists()]
        return [f"### {heading}", *shown, markdown(table)] if len(table) > 1 else []

    parts = [_circumstances(results, rows), *section("At a glance", _glance(rows), "throughput", "latency", "claims")]
    parts += section("CPU microseconds per run, by process", _spent(rows), "cpu_by_whom")
    for name, (heading, what, plot) in _SERIES.items():
        points = next((result.series(name) for result in results if result.kind == OWN and result.series(name)), [])
        parts += section(heading, _curve(points, what), plot)
    for result in (result for result in results if result.kind == PEERS):
        parts += [*section("Peers", _peers(result), "peers"), _circumstances([result], result.rows)]
    return "\n\n".join(parts)


def _newest(results: Sequence[ResultFile]) -> dict[str, Row]:
    """Underway's own rows by name: first the single ones, then the points of curves."""
    rows: dict[str, Row] = {}
    for result in results:
        if result.kind == OWN:
            for row in result.rows:
                if OURS in row.samples:
                    rows.setdefault(row.name, row)
    return dict(sorted(rows.items(), key=lambda item: item[1].point is not None))


def _glance(rows: Iterable[Row]) -> Table:
    table = [["", OURS, "lowest - highest", "compared with", "", "ratio"]]
    for row in rows:
        if row.point is None:
            samples = row.samples[OURS]
            spread = f"{number(min(samples))} - {number(max(samples))}" if len(samples) > 1 else ""
            ours = [row.name, f"{number(row.ours)} {row.unit}", spread]
            for baseline in row.baselines or [""]:
                compared = (
                    [baseline, number(row.baseline(baseline)), f"{row.ratio(baseline):.3f}"]
                    if baseline
                    else ["", "", ""]
                )
                table.append([*ours, *compared])
                ours = ["", "", ""]
    return table


def _spent(rows: Iterable[Row]) -> Table:
    table = [["", "workers", "supervisor", "Postgres", "all"]]
    for row in rows:
        # Of the curves only these two, which show how the overhead changes.
        spent = row.notes.get("cpu_microseconds_a_run")
        if isinstance(spent, dict) and (row.point is None or row.point.series in ("step length", "payload")):
            parts = [float(spent[process]) for process in ("workers", "supervisor", "postgres")]
            table.append([row.name, *(f"{value:,.0f}" for value in (*parts, sum(parts)))])
    return table


def _curve(points: Sequence[Row], what: str) -> Table:
    baselines = list(dict.fromkeys(baseline for row in points for baseline in row.baselines))
    table = [[what, f"{OURS}, runs/s", *(head for baseline in baselines for head in (baseline, "ratio"))]]
    for row in points:
        compared = [
            cell
            for baseline in baselines
            for cell in (
                (number(row.baseline(baseline)), f"{row.ratio(baseline):.3f}") if baseline in row.samples else ("", "")
            )
        ]
        table.append([_label(row), number(row.ours), *compared])
    return table


def _label(row: Row) -> str:
    return row.name if row.point is None else row.point.label


def _peers(result: ResultFile) -> Table:
    """One line per product, one column per measured quantity."""
    products = list(dict.fromkeys(name for row in result.rows for name, samples in row.samples.items() if samples))
    table = [["", *(f"{row.name}, {row.unit}" for row in result.rows)]]
    for product in products:
        table.append(
            [product, *(number(row.baseline(product)) if row.samples.get(product) else "" for row in result.rows)]
        )
    return table


def _circumstances(results: Sequence[ResultFile], used: Sequence[Row]) -> str:
    """When and where these rows were measured: one line per machine, also for rows from several results."""
    machines: dict[str, list[ResultFile]] = {}
    for result in results:
        if any(row is one for row in result.rows for one in used):
            machines.setdefault(replace(result.machine, code="").line, []).append(result)
    return "\n".join(map(_measured, machines.values()))


def _measured(results: Sequence[ResultFile]) -> str:
    """The line for these results, all from one machine."""
    days = _listed(f"{result.at:%-d %B %Y}" for result in reversed(results))
    rounds = sorted({result.rounds for result in results})
    medians = findings.rounds(results[0]) if len(rounds) == 1 else f"medians of {rounds[0]} to {rounds[-1]} rounds"
    machine = replace(results[0].machine, code=_listed(result.machine.code for result in results))
    disturbed = [result.disturbed for result in results if result.disturbed is not None]
    noise = f" The machine was not quiet: others used up to {max(disturbed):.0%} of it." if disturbed else ""
    return f"Measured on {days}, {medians}. {machine.line}.{noise}"


def _listed(words: Iterable[str]) -> str:
    """The distinct words as an English list."""
    *first, last = dict.fromkeys(words)
    return f"{', '.join(first)} and {last}" if first else last


def markdown(table: Table) -> str:
    head, *lines = ["| " + " | ".join(cells) + " |" for cells in table]
    return "\n".join([head, "|" + "---|" * len(table[0]), *lines])


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(str(error))
