"""Turns results into plots: the rows of each plot, and the finding in its title. drawing.py draws them."""

from collections.abc import Callable, Sequence
from itertools import takewhile

from benchmarks import postgres_only
from benchmarks.baselines import EXECUTOR, POOL
from benchmarks.cases.growth import FULL
from benchmarks.model import OURS, Row, percentile
from benchmarks.plots.plot_data import Bar, Bars, Curves, Distribution, Line, Panels, Plot
from benchmarks.result_files import PEERS, ResultFile, newest_with_row, newest_with_series

# By the name in a row's notes: the label in a bar, and the words in a sentence.
_PROCESSES = {
    "workers": ("workers", "the workers"),
    "supervisor": ("supervisor", "the supervisor"),
    "postgres": ("Postgres", "Postgres"),
}
# A step is long enough if the workers spend this share of their CPU time on steps.
_WELL_USED_SHARE = 0.9
# There are enough workers if more of them would add at most this share of throughput.
_WORTHWHILE_GAIN = 0.05
# A payload is small if throughput stays at least at this share.
_SMALL_PAYLOAD_SHARE = 0.75


def plots(results: Sequence[ResultFile]) -> list[Plot]:
    """Every plot that these results have rows for; each uses the newest result with its rows."""
    return [plot for make_plot in _PLOTS if (plot := make_plot(results)) is not None]


def throughput(results: Sequence[ResultFile]) -> Plot | None:
    name = "no-op, one step"
    if (result := newest_with_row(results, name)) is None or (row := result.row(name)) is None:
        return None
    bars = [Bar(OURS, {"": row.ours})]
    kept = {
        baseline: baseline if baseline == postgres_only.NAME else f"{baseline} (keeps nothing)"
        for baseline in row.baselines
    }
    bars += [Bar(label, {"": row.baseline(baseline)}, ours=False) for baseline, label in kept.items()]
    bars.sort(key=lambda bar: bar.total, reverse=True)
    title = f"{_number(row.ours)} no-op runs a second, each kept in Postgres"
    if EXECUTOR in row.samples:
        title += f": {row.ours / row.baseline(EXECUTOR):.1f} times {EXECUTOR}, which keeps nothing"
    return Plot("throughput", title, f"No-op runs a second, 2 workers, {rounds(result)}", _footer(result), Bars(bars))


def peers(results: Sequence[ResultFile]) -> Plot | None:
    """All queues in one run of the peer harness; underway is slower there than in its own benchmark."""
    result = next((one for one in results if one.kind == PEERS), None)
    row = next((row for row in result.rows if row.name.startswith("no-op")), None) if result else None
    if result is None or row is None or OURS not in row.samples:
        return None
    rates = {name: row.baseline(name) for name, samples in row.samples.items() if samples}
    bars = [Bar(name, {"": rate}, ours=name == OURS) for name, rate in rates.items()]
    bars.sort(key=lambda bar: bar.total, reverse=True)
    best = max((name for name in rates if name != OURS), key=lambda name: rates[name], default=None)
    title = f"{_number(row.ours)} no-op runs a second"
    if best is not None:
        title += f", {row.ours / rates[best]:.2g} times {best}, the fastest peer"
    subtitle = f"No-op runs a second, 2 processes, each queue in its fastest setting, {rounds(result)}"
    return Plot("peers", title, subtitle, _footer(result), Bars(bars))


def step_length(results: Sequence[ResultFile]) -> Plot | None:
    if (result := newest_with_series(results, "step length")) is None:
        return None
    rows = [row for row in result.series("step length") if FULL in row.samples]
    if len(rows) < 2:
        return None
    ours = [row.ratio(FULL) for row in rows]
    pool = [row.baseline(POOL) / row.baseline(FULL) for row in rows]
    used_well = list(
        takewhile(lambda pair: pair[1] >= _WELL_USED_SHARE, zip(reversed(rows), reversed(ours), strict=True))
    )
    if used_well:
        title = (
            f"From {_label(used_well[-1][0])} a step on, at least {_WELL_USED_SHARE:.0%} of what the workers can do "
            "goes into the steps"
        )
    else:
        title = f"Steps of {_label(rows[-1])} get {ours[-1]:.0%} of what the workers can do"
    curves = Curves(
        "",
        "CPU time of one step",
        [_label(row) for row in rows],
        [Line(POOL, pool, ours=False), Line(OURS, ours, ours=True)],
        share=True,
    )
    subtitle = f"Share of the CPU time of 2 workers that is spent on steps, {rounds(result)}"
    return Plot("step_length", title, subtitle, _footer(result), Panels([curves]))


def workers(results: Sequence[ResultFile]) -> Plot | None:
    panels, result = _panels(results, "workers")
    if result is None:
        return None
    work = "20 ms" if result.series("20 ms by workers") else "no-op"
    rows = result.series(f"{work} by workers")
    most = max(row.ours for row in rows)
    enough = next(row for row in rows if row.ours >= most / (1 + _WORTHWHILE_GAIN))
    title = f"{_label(enough)} workers fill {result.machine.cores} cores with {work} steps"
    if enough is not rows[-1]:
        title += f": more of them bring no more than {most / enough.ours - 1:.0%}"
    subtitle = f"Runs a second by the number of workers (--procs), {rounds(result)}"
    return Plot("growth_workers", title, subtitle, _footer(result), Panels(panels))


def supervisors(results: Sequence[ResultFile]) -> Plot | None:
    panels, result = _panels(results, "supervisors")
    if result is None:
        return None
    gains = [
        f"{rows[-1].ours / rows[0].ours:.2f} times as many {work} steps"
        for work in ("no-op", "20 ms")
        if (rows := result.series(f"{work} by supervisors"))
    ]
    count = panels[0].ticks[-1]
    title = f"{count} supervisors on one machine run {' and '.join(gains)} as one"
    subtitle = f"Runs a second by the number of supervisors, 2 workers each, {rounds(result)}"
    return Plot("growth_supervisors", title, subtitle, _footer(result), Panels(panels))


def _panels(results: Sequence[ResultFile], what: str) -> tuple[list[Curves], ResultFile | None]:
    """The curves of no-op and 20 ms steps, beside the pool."""
    result = newest_with_series(results, f"no-op by {what}") or newest_with_series(results, f"20 ms by {what}")
    panels = []
    for work, heading in (("no-op", "No-op steps"), ("20 ms", "Steps of 20 ms")):
        if result is not None and (rows := result.series(f"{work} by {what}")):
            panels.append(Curves(heading, what, [_label(row) for row in rows], _beside_pool(rows)))
    return panels, result


def payload(results: Sequence[ResultFile]) -> Plot | None:
    if (result := newest_with_series(results, "payload")) is None:
        return None
    rows = result.series("payload")
    small = [row for row in rows if row.ours >= _SMALL_PAYLOAD_SHARE * rows[0].ours][-1]
    megabytes = max(row.ours * row.point.x / 1e6 for row in rows if row.point is not None)
    title = (
        f"Inputs of {_label(small)} keep {min(1, small.ours / rows[0].ours):.0%} of the throughput; "
        f"large ones move up to {megabytes:.0f} MB a second"
    )
    curves = Curves("", "Size of the input", [_label(row) for row in rows], _beside_pool(rows), log=True)
    subtitle = f"Runs a second by the size of the input, 2 workers, {rounds(result)}"
    return Plot("growth_payload", title, subtitle, _footer(result), Panels([curves]))


def _beside_pool(rows: list[Row]) -> list[Line]:
    pool = [row.baseline(POOL) for row in rows]
    return [Line(POOL, pool, ours=False), Line(OURS, [row.ours for row in rows], ours=True)]


def claims(results: Sequence[ResultFile]) -> Plot | None:
    """The cost of a claim by what the tables hold."""
    for result in results:
        rows = [row for row in result.rows if row.name.startswith("claim") and OURS in row.samples]
        if not rows or result.kind == PEERS:
            continue
        unit = rows[0].unit
        rows = [row for row in rows if row.unit == unit]
        bars = [Bar(row.name.removeprefix("claim").lstrip(" ,:") or row.name, {"": row.ours}) for row in rows]
        least, most = min(bars, key=lambda bar: bar.total), max(bars, key=lambda bar: bar.total)
        title = f"The most expensive claim ({most.label}) costs {most.total / least.total:.1f} times the cheapest"
        subtitle = f"{unit} a claim, by what the tables hold, {rounds(result)}"
        return Plot("claims", title, subtitle, _footer(result), Bars(bars))
    return None


def cpu_by_process(results: Sequence[ResultFile]) -> Plot | None:
    result = newest_with_row(results, "no-op, one step")
    if result is None:
        return None
    bars = [
        Bar(row.name, {short: float(spent[process]) for process, (short, _) in _PROCESSES.items()})
        for row in result.rows
        if row.point is None
        and row.name.startswith("no-op")
        and isinstance(spent := row.notes.get("cpu_microseconds_a_run"), dict)
    ]
    if not bars:
        return None
    one = bars[0]
    most, phrase = max(_PROCESSES.values(), key=lambda names: one.parts[names[0]])
    title = (
        f"A no-op run costs {one.total:.0f} microseconds of CPU, "
        f"{one.parts[most] / max(one.total, 1e-9):.0%} of it in {phrase}"
    )
    subtitle = f"CPU microseconds per run, by process, {rounds(result)}"
    return Plot("cpu_by_whom", title, subtitle, _footer(result), Bars(bars))


def latency(results: Sequence[ResultFile]) -> Plot | None:
    name = "idle latency, median"
    if (result := newest_with_row(results, name)) is None or (row := result.row(name)) is None:
        return None
    values = row.notes.get("milliseconds")
    if not isinstance(values, list) or not values:
        return None
    half, high = percentile(values, 0.5), percentile(values, 0.99)
    title = f"Half of all steps begin within {half:.1f} ms of enqueue, 99 of 100 within {high:.1f} ms"
    subtitle = (
        f"Milliseconds from the call of enqueue to the first line of the step, idle supervisor, {len(values)} runs"
    )
    return Plot(
        "latency",
        title,
        subtitle,
        _footer(result),
        Distribution(values, "ms", {"median": half, "99th percentile": high}),
    )


def _label(row: Row) -> str:
    return row.name if row.point is None else row.point.label


def _number(value: float) -> str:
    """Rounded to three significant digits."""
    return f"{float(f'{value:.3g}'):,.0f}"


def rounds(result: ResultFile) -> str:
    return f"medians of {result.rounds} rounds" if result.rounds > 1 else "one round"


def _footer(result: ResultFile) -> str:
    machine = result.machine
    settings = ", ".join(f"{name} {value}" for name, value in machine.settings.items())
    text = (
        f"{machine.cpu}, {machine.cores} cores; Python {machine.python}; PostgreSQL {machine.postgres} ({settings})\n"
        f"underway {machine.code}; {result.at:%-d %B %Y}"
    )
    return (
        text if result.disturbed is None else f"{text}; not a quiet machine: others used up to {result.disturbed:.0%}"
    )


_PLOTS: tuple[Callable[[Sequence[ResultFile]], Plot | None], ...] = (
    throughput,
    step_length,
    workers,
    payload,
    supervisors,
    claims,
    cpu_by_process,
    latency,
    peers,
)
