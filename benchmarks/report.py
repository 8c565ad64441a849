"""The table at the end, and the file with every sample."""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from benchmarks.machine import Machine
from benchmarks.model import OURS, Row

RESULTS = Path(__file__).parent / "results"
_HEAD = ("", "", "lowest - highest", "ratio", "floor", "goal", "")


def table(rows: list[Row]) -> str:
    """Each row with its baselines below it; the ratio is underway to that baseline."""
    lines: list[tuple[str, ...]] = [_HEAD]
    for row in rows:
        lines += [_line(row, variant) for variant in row.samples]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([texts[0], "-" * max(map(len, texts)), *texts[1:]])


def _line(row: Row, variant: str) -> tuple[str, ...]:
    samples = row.samples[variant]
    spread = f"{number(min(samples))} - {number(max(samples))}" if len(samples) > 1 else ""
    measured = (f"{number(median(samples))} {row.unit}".rstrip(), spread)
    judged = ("", "", "")
    if variant == (row.judged_by or OURS):
        judged = (_bound(row, row.floor), _bound(row, row.goal), _verdict(row))
    if variant == OURS:
        return (row.name, *measured, "", *judged)
    return (f"  {variant}", *measured, f"{row.ratio(variant):.3f}", *judged)


def _bound(row: Row, bound: float | None) -> str:
    if bound is None:
        return ""
    return f"{'<' if row.lower_is_better else '>'} {f'{bound} x' if row.judged_by else number(bound)}"


def _verdict(row: Row) -> str:
    if row.disturbed is not None and row.goal is not None:
        # Contention also flatters: with more processes than the pool, underway gets a larger share of the machine.
        return f"no verdict: others {row.disturbed:.0%}"
    if row.meets(row.goal):
        return "goal met"
    if row.floor is not None:
        return "floor met" if row.meets(row.floor) else "BELOW FLOOR"
    return "below goal" if row.goal is not None else ""


def number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


@dataclass(frozen=True)
class Circumstances:
    """What else the figures depend on. `neighbours`: the share of the machine that others used, for each sample."""

    machine: Machine
    load_before: float
    load_after: float
    neighbours: list[float]
    seconds: float


def footer(rows: Iterable[Row], circumstances: Circumstances) -> str:
    # The CPU times of a curve's points are in the file: here they would bury the table.
    single = [row for row in rows if row.point is None]
    lines = [_spent(row, spent) for row in single if isinstance(spent := row.notes.get("cpu_microseconds_a_run"), dict)]
    lines += [
        "medians of the rounds; ratios are medians over the pairs; the pools take one task per message (chunksize=1)",
        circumstances.machine.line,
        f"load average {circumstances.load_before:.2f} before, {circumstances.load_after:.2f} after; "
        f"{circumstances.seconds:.0f} s",
    ]
    if circumstances.neighbours:
        lines[-1] += (
            f"; others used {median(circumstances.neighbours):.0%} of the machine during the median sample,"
            f" {max(circumstances.neighbours):.0%} during the worst"
        )
    return "\n".join(lines)


def _spent(row: Row, spent: dict[str, float]) -> str:
    """CPU time per run and process. All but the workers' share is overhead; neighbours hardly affect this figure."""
    parts = {name: spent[name] for name in ("workers", "supervisor", "postgres")}
    return (
        f"{row.name}: CPU microseconds per run: "
        + ", ".join(f"{name} {value:,.0f}" for name, value in parts.items())
        + f" (workers' share {parts['workers'] / max(sum(parts.values()), 1e-9):.3f})"
    )


def save(rows: Iterable[Row], circumstances: Circumstances, options: object) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{time.strftime('%Y%m%dT%H%M%S')}.json"
    document = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "circumstances": asdict(circumstances),
        "options": options,
        "rows": [asdict(row) for row in rows],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path
