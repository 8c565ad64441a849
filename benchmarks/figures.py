"""Writes the figures of the documentation anew: python -m benchmarks.figures RESULT.json..."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import click

from benchmarks import documents
from benchmarks.documents import OWN, PEERS, Document
from benchmarks.limits import EXECUTOR, POOL
from benchmarks.model import OURS, Row
from benchmarks.plots import findings
from benchmarks.report import number

ROOT = Path(__file__).parent.parent
README, PERFORMANCE = ROOT / "README.md", ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

# What the README shows: the rows, in its own words; of two rows, both figures in one cell.
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
# What each series is a curve of: the heading of its table, the head of its first column, its plot.
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
    """Put figures into README.md and docs/performance.md, each row from the newest RESULT that has it."""
    given = documents.load_all(results)
    for path, block in ((README, in_short(given)), (PERFORMANCE, in_full(given, PERFORMANCE.parent))):
        path.write_text(rewritten(path.read_text(), block))
        print(path)


def rewritten(text: str, block: str) -> str:
    """The text with this between its markers. Raises ValueError if it does not have them, once each and in order."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in before + after:
        raise ValueError(f"expected {BEGIN} and then {END}, once each")
    return f"{before}{BEGIN}\n{block.strip()}\n{END}{after}"


def in_short(given: Sequence[Document]) -> str:
    rows = _newest(given)
    table = [["", OURS, f"`{POOL}`", f"`{EXECUTOR}`"]]
    used = []
    for words, names in _IN_SHORT.items():
        found = [rows[name] for name in names if name in rows]
        if len(found) == len(names):
            used += found
            ours = " / ".join(_rounded(row.ours) for row in found)
            if found[0].judged_by == POOL:
                ours += f" ({found[0].ratio(POOL):.2f} of Pool)"
            table.append([words, ours, *(_limits(found, limit) for limit in (POOL, EXECUTOR))])
    return f"{_circumstances(given, used)}\n\n{markdown(table)}"


def _limits(rows: list[Row], wanted: str) -> str:
    """A pool may be named with how it was used, as in "ProcessPoolExecutor, built anew"."""
    names = [next((limit for limit in row.limits if limit.startswith(wanted)), None) for row in rows]
    return " / ".join(_rounded(row.limit(name)) for row, name in zip(rows, names, strict=True) if name is not None)


def _rounded(value: float) -> str:
    """Three digits say enough."""
    return number(float(f"{value:.3g}"))


def in_full(given: Sequence[Document], folder: Path) -> str:
    """Every row; the plots too that are in `plots` of this folder."""
    rows = list(_newest(given).values())
    plots = {picture.name: f"![{picture.title}](plots/{picture.name}.png)" for picture in findings.pictures(given)}

    def section(heading: str, table: Table, *names: str | None) -> list[str]:
        shown = [plots[name] for name in names if name in plots and (folder / "plots" / f"{name}.png").exists()]
        return [f"### {heading}", *shown, markdown(table)] if len(table) > 1 else []

    parts = [_circumstances(given, rows), *section("At a glance", _glance(rows), "throughput", "latency", "claims")]
    parts += section("CPU microseconds a run, by whom", _spent(rows), "cpu_by_whom")
    for name, (heading, what, plot) in _SERIES.items():
        points = next((one.series(name) for one in given if one.kind == OWN and one.series(name)), [])
        parts += section(heading, _curve(points, what), plot)
    for document in (one for one in given if one.kind == PEERS):
        parts += [*section("Peers", _peers(document), "peers"), _circumstances([document], document.rows)]
    return "\n\n".join(parts)


def _newest(given: Sequence[Document]) -> dict[str, Row]:
    """Our rows by name; first those that stand alone, then the points of curves."""
    rows: dict[str, Row] = {}
    for document in given:
        if document.kind == OWN:
            for row in document.rows:
                if OURS in row.samples:
                    rows.setdefault(row.name, row)
    return dict(sorted(rows.items(), key=lambda item: item[1].point is not None))


def _glance(rows: Iterable[Row]) -> Table:
    table = [["", OURS, "lowest - highest", "beside", "", "ratio"]]
    for row in rows:
        if row.point is None:
            samples = row.samples[OURS]
            spread = f"{number(min(samples))} - {number(max(samples))}" if len(samples) > 1 else ""
            ours = [row.name, f"{number(row.ours)} {row.unit}", spread]
            for limit in row.limits or [""]:
                beside = [limit, number(row.limit(limit)), f"{row.ratio(limit):.3f}"] if limit else ["", "", ""]
                table.append([*ours, *beside])
                ours = ["", "", ""]
    return table


def _spent(rows: Iterable[Row]) -> Table:
    table = [["", "workers", "supervisor", "Postgres", "all"]]
    for row in rows:
        # Of the curves only step length: how the overhead changes with the pace is to be seen there.
        spent = row.notes.get("cpu_microseconds_a_run")
        if isinstance(spent, dict) and (row.point is None or row.point.series in ("step length", "payload")):
            parts = [float(spent[who]) for who in ("workers", "supervisor", "postgres")]
            table.append([row.name, *(f"{value:,.0f}" for value in (*parts, sum(parts)))])
    return table


def _curve(points: Sequence[Row], what: str) -> Table:
    limits = list(dict.fromkeys(limit for row in points for limit in row.limits))
    table = [[what, f"{OURS}, runs/s", *(head for limit in limits for head in (limit, "ratio"))]]
    for row in points:
        beside = [
            cell
            for limit in limits
            for cell in ((number(row.limit(limit)), f"{row.ratio(limit):.3f}") if limit in row.samples else ("", ""))
        ]
        table.append([_label(row), number(row.ours), *beside])
    return table


def _label(row: Row) -> str:
    return row.name if row.point is None else row.point.label


def _peers(document: Document) -> Table:
    """A line for each product, a column for each thing measured."""
    products = list(dict.fromkeys(name for row in document.rows for name, samples in row.samples.items() if samples))
    table = [["", *(f"{row.name}, {row.unit}" for row in document.rows)]]
    for product in products:
        table.append(
            [product, *(number(row.limit(product)) if row.samples.get(product) else "" for row in document.rows)]
        )
    return table


def _circumstances(given: Sequence[Document], used: Sequence[Row]) -> str:
    """When and where these rows were measured: one line per machine, even if they come from several results."""
    machines: dict[str, list[Document]] = {}
    for document in given:
        if any(row is one for row in document.rows for one in used):
            machines.setdefault(replace(document.machine, code="").line, []).append(document)
    return "\n".join(map(_measured, machines.values()))


def _measured(documents: Sequence[Document]) -> str:
    """The line for these documents, which all come from one machine."""
    days = _listed(f"{document.at:%-d %B %Y}" for document in reversed(documents))
    rounds = sorted({document.rounds for document in documents})
    medians = findings.rounds(documents[0]) if len(rounds) == 1 else f"medians of {rounds[0]} to {rounds[-1]} rounds"
    machine = replace(documents[0].machine, code=_listed(document.machine.code for document in documents))
    disturbed = [document.disturbed for document in documents if document.disturbed is not None]
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
