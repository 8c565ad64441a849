"""From results to pictures: which rows each shows, and the finding that is its title. No drawing here."""

from collections.abc import Callable, Sequence
from itertools import takewhile

from benchmarks import alone
from benchmarks.cases.growth import FULL
from benchmarks.documents import PEERS, Document, holding, holding_series
from benchmarks.limits import EXECUTOR, POOL
from benchmarks.model import OURS, Row, percentile
from benchmarks.plots.pictures import Bar, Bars, Curves, Distribution, Line, Panels, Picture

# As noted with the rows: in a bar, in a sentence.
_BY_WHOM = {
    "workers": ("workers", "the workers"),
    "supervisor": ("supervisor", "the supervisor"),
    "postgres": ("Postgres", "Postgres"),
}
# A step is long enough when so much of what the workers could do at best is spent on steps.
_WELL_USED = 0.9
# Workers are enough when more of them would not bring more than this on top.
_WORTH_IT = 0.05
# A payload is small when it leaves so much of the throughput.
_HARDLY_FELT = 0.75


def pictures(documents: Sequence[Document]) -> list[Picture]:
    """All that these results are enough for; each from the newest result that has its rows."""
    drawn = [picture(documents) for picture in _PICTURES]
    return [picture for picture in drawn if picture is not None]


def throughput(documents: Sequence[Document]) -> Picture | None:
    name = "no-op, one step"
    if (document := holding(documents, name)) is None or (row := document.row(name)) is None:
        return None
    bars = [Bar(OURS, {"": row.ours})]
    kept = {limit: limit if limit == alone.NAME else f"{limit} (keeps nothing)" for limit in row.limits}
    bars += [Bar(label, {"": row.limit(limit)}, ours=False) for limit, label in kept.items()]
    bars.sort(key=lambda bar: bar.total, reverse=True)
    title = f"{_number(row.ours)} no-op runs a second, each kept in Postgres"
    if EXECUTOR in row.samples:
        title += f": {row.ours / row.limit(EXECUTOR):.1f} times {EXECUTOR}, which keeps nothing"
    return Picture(
        "throughput", title, f"No-op runs a second, 2 workers, {rounds(document)}", _footer(document), Bars(bars)
    )


def peers(documents: Sequence[Document]) -> Picture | None:
    """All in the same harness and the same run; ours is less there than in a run of its own."""
    document = next((one for one in documents if one.kind == PEERS), None)
    row = next((row for row in document.rows if row.name.startswith("no-op")), None) if document else None
    if document is None or row is None or OURS not in row.samples:
        return None
    rates = {name: row.limit(name) for name, samples in row.samples.items() if samples}
    bars = [Bar(name, {"": rate}, ours=name == OURS) for name, rate in rates.items()]
    bars.sort(key=lambda bar: bar.total, reverse=True)
    best = max((name for name in rates if name != OURS), key=lambda name: rates[name], default=None)
    title = f"{_number(row.ours)} no-op runs a second"
    if best is not None:
        title += f", {row.ours / rates[best]:.2g} times {best}, the fastest peer"
    subtitle = f"No-op runs a second, 2 processes, each queue in its fastest setting, {rounds(document)}"
    return Picture("peers", title, subtitle, _footer(document), Bars(bars))


def step_length(documents: Sequence[Document]) -> Picture | None:
    if (document := holding_series(documents, "step length")) is None:
        return None
    rows = [row for row in document.series("step length") if FULL in row.samples]
    if len(rows) < 2:
        return None
    ours = [row.ratio(FULL) for row in rows]
    pool = [row.limit(POOL) / row.limit(FULL) for row in rows]
    used_well = list(takewhile(lambda pair: pair[1] >= _WELL_USED, zip(reversed(rows), reversed(ours), strict=True)))
    if used_well:
        title = (
            f"From {_label(used_well[-1][0])} a step on, at least {_WELL_USED:.0%} of what the workers can do "
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
    subtitle = f"Share of the CPU time of 2 workers that is spent on steps, {rounds(document)}"
    return Picture("step_length", title, subtitle, _footer(document), Panels([curves]))


def workers(documents: Sequence[Document]) -> Picture | None:
    panels, document = _panels(documents, "workers")
    if document is None:
        return None
    work = "20 ms" if document.series("20 ms by workers") else "no-op"
    rows = document.series(f"{work} by workers")
    most = max(row.ours for row in rows)
    enough = next(row for row in rows if row.ours >= most / (1 + _WORTH_IT))
    title = f"{_label(enough)} workers fill {document.machine.cores} cores with {work} steps"
    if enough is not rows[-1]:
        title += f": more of them bring no more than {most / enough.ours - 1:.0%}"
    subtitle = f"Runs a second by the number of workers (--procs), {rounds(document)}"
    return Picture("growth_workers", title, subtitle, _footer(document), Panels(panels))


def supervisors(documents: Sequence[Document]) -> Picture | None:
    panels, document = _panels(documents, "supervisors")
    if document is None:
        return None
    gains = [
        f"{rows[-1].ours / rows[0].ours:.2f} times as many {work} steps"
        for work in ("no-op", "20 ms")
        if (rows := document.series(f"{work} by supervisors"))
    ]
    count = panels[0].ticks[-1]
    title = f"{count} supervisors on one machine run {' and '.join(gains)} as one"
    subtitle = f"Runs a second by the number of supervisors, 2 workers each, {rounds(document)}"
    return Picture("growth_supervisors", title, subtitle, _footer(document), Panels(panels))


def _panels(documents: Sequence[Document], what: str) -> tuple[list[Curves], Document | None]:
    """The curves of no-ops and of 20 ms steps, beside the pool."""
    document = holding_series(documents, f"no-op by {what}") or holding_series(documents, f"20 ms by {what}")
    panels = []
    for work, heading in (("no-op", "No-op steps"), ("20 ms", "Steps of 20 ms")):
        if document is not None and (rows := document.series(f"{work} by {what}")):
            panels.append(Curves(heading, what, [_label(row) for row in rows], _beside_pool(rows)))
    return panels, document


def payload(documents: Sequence[Document]) -> Picture | None:
    if (document := holding_series(documents, "payload")) is None:
        return None
    rows = document.series("payload")
    small = [row for row in rows if row.ours >= _HARDLY_FELT * rows[0].ours][-1]
    megabytes = max(row.ours * row.point.x / 1e6 for row in rows if row.point is not None)
    title = (
        f"Inputs of {_label(small)} keep {min(1, small.ours / rows[0].ours):.0%} of the throughput; "
        f"large ones move up to {megabytes:.0f} MB a second"
    )
    curves = Curves("", "Size of the input", [_label(row) for row in rows], _beside_pool(rows), log=True)
    subtitle = f"Runs a second by the size of the input, 2 workers, {rounds(document)}"
    return Picture("growth_payload", title, subtitle, _footer(document), Panels([curves]))


def _beside_pool(rows: list[Row]) -> list[Line]:
    pool = [row.limit(POOL) for row in rows]
    return [Line(POOL, pool, ours=False), Line(OURS, [row.ours for row in rows], ours=True)]


def claims(documents: Sequence[Document]) -> Picture | None:
    """What a claim costs beside what is in the tables."""
    for document in documents:
        rows = [row for row in document.rows if row.name.startswith("claim") and OURS in row.samples]
        if not rows or document.kind == PEERS:
            continue
        unit = rows[0].unit
        rows = [row for row in rows if row.unit == unit]
        bars = [Bar(row.name.removeprefix("claim").lstrip(" ,:") or row.name, {"": row.ours}) for row in rows]
        least, most = min(bars, key=lambda bar: bar.total), max(bars, key=lambda bar: bar.total)
        title = f"The dearest claim ({most.label}) costs {most.total / least.total:.1f} times the cheapest"
        subtitle = f"{unit} a claim, by what the tables hold, {rounds(document)}"
        return Picture("claims", title, subtitle, _footer(document), Bars(bars))
    return None


def cpu_by_whom(documents: Sequence[Document]) -> Picture | None:
    document = holding(documents, "no-op, one step")
    if document is None:
        return None
    bars = [
        Bar(row.name, {short: float(spent[who]) for who, (short, _) in _BY_WHOM.items()})
        for row in document.rows
        if row.point is None
        and row.name.startswith("no-op")
        and isinstance(spent := row.notes.get("cpu_microseconds_a_run"), dict)
    ]
    if not bars:
        return None
    one = bars[0]
    dearest, said = max(_BY_WHOM.values(), key=lambda names: one.parts[names[0]])
    title = (
        f"A no-op run costs {one.total:.0f} microseconds of CPU, "
        f"{one.parts[dearest] / max(one.total, 1e-9):.0%} of it in {said}"
    )
    subtitle = f"CPU microseconds a run, by whom, {rounds(document)}"
    return Picture("cpu_by_whom", title, subtitle, _footer(document), Bars(bars))


def latency(documents: Sequence[Document]) -> Picture | None:
    name = "idle latency, median"
    if (document := holding(documents, name)) is None or (row := document.row(name)) is None:
        return None
    values = row.notes.get("milliseconds")
    if not isinstance(values, list) or not values:
        return None
    half, high = percentile(values, 0.5), percentile(values, 0.99)
    title = f"Half of all steps begin within {half:.1f} ms of enqueue, 99 of 100 within {high:.1f} ms"
    subtitle = (
        f"Milliseconds from the call of enqueue to the first line of the step, idle supervisor, {len(values)} runs"
    )
    return Picture(
        "latency",
        title,
        subtitle,
        _footer(document),
        Distribution(values, "ms", {"median": half, "99th percentile": high}),
    )


def _label(row: Row) -> str:
    return row.name if row.point is None else row.point.label


def _number(value: float) -> str:
    """Three digits say enough."""
    return f"{float(f'{value:.3g}'):,.0f}"


def rounds(document: Document) -> str:
    return f"medians of {document.rounds} rounds" if document.rounds > 1 else "one round"


def _footer(document: Document) -> str:
    machine = document.machine
    settings = ", ".join(f"{name} {value}" for name, value in machine.settings.items())
    said = (
        f"{machine.cpu}, {machine.cores} cores; Python {machine.python}; PostgreSQL {machine.postgres} ({settings})\n"
        f"underway {machine.code}; {document.at:%-d %B %Y}"
    )
    return (
        said
        if document.disturbed is None
        else f"{said}; not a quiet machine: others used up to {document.disturbed:.0%}"
    )


_PICTURES: tuple[Callable[[Sequence[Document]], Picture | None], ...] = (
    throughput,
    step_length,
    workers,
    payload,
    supervisors,
    claims,
    cpu_by_whom,
    latency,
    peers,
)
