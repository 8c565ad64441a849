"""The table of results, the settings, and the file with every sample."""

import json
import textwrap
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from statistics import median

from benchmarks import model
from benchmarks.model import percentile
from benchmarks.peers.measures import Sizes, Survival
from benchmarks.peers.peers import OURS, Peer
from benchmarks.report import RESULTS, Circumstances
from benchmarks.result_files import PEERS

WIDTH = 120
POOL = "multiprocessing.Pool"
# The goal: twice the best rate of this rival, in the same run.
_RIVAL, _GOAL = "pgqueuer", 2.0
_LEFT_ALIGNED = {0, 1, 2}


@dataclass
class Row:
    """One peer's samples, in the order of the rounds; a failed sample is None.

    `noop` is keyed by the text of the setting, `cpu` by milliseconds, `failures` by the measure that failed.
    """

    peer: Peer
    version: str
    noop: dict[str, list[float | None]] = field(default_factory=dict)
    cpu: dict[int, list[float | None]] = field(default_factory=dict)
    latency: list[list[float] | None] = field(default_factory=list)
    killed: list[Survival | None] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def best(self) -> str | None:
        """The setting with the most no-ops per second."""
        medians = {text: _median(samples) for text, samples in self.noop.items()}
        return max((text for text in medians if medians[text]), key=lambda text: medians[text] or 0.0, default=None)

    @property
    def noops(self) -> list[float | None]:
        return self.noop[self.best] if self.best else []


@dataclass
class Result:
    rows: list[Row]
    pool: dict[int, list[float | None]]  # by milliseconds

    def ahead(self, row: Row) -> float | None:
        """The ratio of underway's no-op rate to this peer's: the median over the pairs."""
        ours = next((row.noops for row in self.rows if row.peer.name == OURS), [])
        return _median([a / b for a, b in zip(ours, row.noops, strict=False) if a and b])

    def share(self, row: Row, milliseconds: int) -> float | None:
        """The peer's rate of CPU tasks as a share of the pool's: the median over the pairs."""
        pairs = zip(row.cpu.get(milliseconds, []), self.pool.get(milliseconds, []), strict=False)
        return _median([a / b for a, b in pairs if a and b])


def table(result: Result, sizes: Sizes) -> str:
    cpu = [milliseconds for milliseconds, _tasks in sizes.cpu]
    head = [
        ("", "", "", "no-ops", "underway", "CPU", "share", "idle", "ms", "killed", "and", "restarted:", "", "", ""),
        ("", "version", "durable", "a second", "is", *(f"{ms} ms" for ms in cpu), "median", "p99",
         "once", "again", "twice", "stuck", "lost", "s"),
    ]  # fmt: skip
    lines = [*head, *(_line(result, row, cpu) for row in result.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [
        " ".join(
            cell.ljust(width) if number in _LEFT_ALIGNED else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([*texts[: len(head)], "-" * max(map(len, texts)), *texts[len(head) :]])


def _line(result: Result, row: Row, cpu: list[int]) -> tuple[str, ...]:
    latencies = list(chain(*(sample for sample in row.latency if sample)))
    ahead = result.ahead(row)
    return (
        row.peer.name,
        row.version,
        row.peer.durable,
        _cell(_median(row.noops), ",.0f"),
        "" if row.peer.name == OURS or ahead is None else f"{ahead:.3g} x",
        *(_cell(result.share(row, milliseconds), ".3f") for milliseconds in cpu),
        _cell(median(latencies) if latencies else None, ".1f"),
        _cell(percentile(latencies, 0.99) if latencies else None, ".1f"),
        *_survival([survival for survival in row.killed if survival]),
    )


def _survival(rounds: list[Survival]) -> tuple[str, ...]:
    """The counts summed over all rounds, and the longest time until the queue was empty."""
    if not rounds:
        return ("",) * 6
    counts = [sum(getattr(one, name) for one in rounds) for name in ("once", "again", "twice", "stuck", "lost")]
    seconds = max(one.seconds for one in rounds)
    return (*map(str, counts), f"{'>' if any(one.stuck for one in rounds) else ''}{seconds:.0f}")


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _median(samples: Iterable[float | None]) -> float | None:
    known = [sample for sample in samples if sample is not None]
    return median(known) if known else None


def legend(result: Result, sizes: Sizes) -> str:
    """The settings, the failures, and how each column was measured."""
    paragraphs = [_settings(row, sizes) for row in result.rows]
    paragraphs += [
        f"{row.peer.name}: {what} failed: {why}" for row in result.rows for what, why in row.failures.items()
    ]
    jobs = {one.jobs for row in result.rows for one in row.killed if one}
    paragraphs += [
        "durable: whether, by default, an enqueued task survives a crash of the server, and a started one a crash of "
        "the worker. A default Redis only writes occasional snapshots; celery acknowledges a task when it starts.",
        "no-ops: from the first start until the queue has recorded the last end, or until it is empty if it records no "
        "times. All tasks were enqueued while the workers, booted and warm, were paused with SIGSTOP. The fastest of "
        "several settings is shown.",
        f"CPU share: the rate as a share of {POOL}'s, with the same number of processes, work and round, from the "
        "first start to the last end. idle: from the call of enqueue to the first line of the task.",
        f"killed: {max(jobs, default=sizes.jobs)} jobs of 100 ms; kill -9 of all worker processes when a quarter is "
        f"done, and an immediate restart; at most {sizes.patience:.0f} s; summed over the rounds. once: started once "
        "and done. again: started again, then done. twice: done twice. stuck: not finished by the queue. lost: not "
        "done, and not in the queue.",
    ]
    return "\n".join(line for paragraph in paragraphs for line in _wrapped(paragraph))


def _settings(row: Row, sizes: Sizes) -> str:
    """The settings of a peer, and the rates of the slower ones that were tried."""
    best = row.best or row.peer.fast[0].text
    tried = [
        f"{text} {value:,.0f}" for text, samples in row.noop.items() if text != best and (value := _median(samples))
    ]
    parts = [
        f"no-ops {best}" + (f" (tried: {'; '.join(tried)})" if tried else ""),
        f"other measures {row.peer.steady.text}",
        f"rescue {row.peer.rescue.format(rescue=sizes.rescue)}",
        row.peer.note,
    ]
    return f"{row.peer.name}: " + "; ".join(part for part in parts if part)


def _wrapped(paragraph: str) -> list[str]:
    return textwrap.wrap(paragraph, WIDTH, subsequent_indent="  ", break_long_words=False)


def footer(result: Result, circumstances: Circumstances, redis: str) -> str:
    lines = [_goal(result)] if any(row.peer.name == _RIVAL for row in result.rows) else []
    lines += _wrapped(circumstances.machine.line + (f"; Redis {redis}, default settings" if redis else ""))
    lines.append(
        f"medians of the rounds; ratios are medians over the pairs; {circumstances.seconds:.0f} s; load average "
        f"{circumstances.load_before:.2f} before, {circumstances.load_after:.2f} after"
    )
    if circumstances.neighbours:
        lines.append(
            f"others used {median(circumstances.neighbours):.0%} of the machine during the median sample, "
            f"{max(circumstances.neighbours):.0%} during the worst"
        )
    return "\n".join(lines)


def _goal(result: Result) -> str:
    ahead = next(result.ahead(row) for row in result.rows if row.peer.name == _RIVAL)
    if ahead is None:
        return f"goal: {_GOAL:g} x {_RIVAL}'s best with no-ops: not measured"
    return f"goal: {_GOAL:g} x {_RIVAL}'s best with no-ops: {ahead:.3g} x, {'met' if ahead >= _GOAL else 'NOT MET'}"


def save(result: Result, circumstances: Circumstances, options: object) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"peers-{time.strftime('%Y%m%dT%H%M%S')}.json"
    document = {
        "kind": PEERS,
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "circumstances": asdict(circumstances),
        "options": options,
        "rows": [asdict(row) for row in comparable(result)],
        "pool": result.pool,
        "peers": [asdict(row) | {"ahead": result.ahead(row), "best": row.best} for row in result.rows],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def comparable(result: Result) -> list[model.Row]:
    """One row per measured quantity, with the samples of each peer: for the plots and the documentation."""
    rows = [model.Row("no-ops", "a second", {row.peer.name: _present(row.noops) for row in result.rows})]
    for milliseconds, pool in result.pool.items():
        samples = {row.peer.name: _present(row.cpu.get(milliseconds, [])) for row in result.rows}
        rows.append(model.Row(f"CPU, {milliseconds} ms a task", "a second", {**samples, POOL: _present(pool)}))
    latencies = {row.peer.name: list(chain(*(taken for taken in row.latency if taken))) for row in result.rows}
    known = {name: taken for name, taken in latencies.items() if taken}
    for what, part in (("median", 0.5), ("99th percentile", 0.99)):
        samples = {name: [percentile(taken, part)] for name, taken in known.items()}
        rows.append(model.Row(f"idle latency, {what}", "ms", samples, lower_is_better=True))
    for what in ("once", "again", "twice", "stuck", "lost"):
        counts = {row.peer.name: [float(sum(getattr(end, what) for end in row.killed if end))] for row in result.rows}
        rows.append(model.Row(f"after kill -9: {what}", "jobs", counts))
    return [row for row in rows if OURS in row.samples]


def _present(samples: Iterable[float | None]) -> list[float]:
    return [sample for sample in samples if sample is not None]
