"""Throughput by the number of workers and supervisors, by payload size and by step length."""

import base64
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from benchmarks import app, baselines, work
from benchmarks.cases.context import PROCS, CaseContext
from benchmarks.cases.drain import Drain
from benchmarks.model import OURS, Point, Row
from benchmarks.testbed import Supervisor
from underway import Job

# The ideal: the workers spend all their CPU time on the steps and never wait.
FULL = f"{PROCS} workers, no overhead"
_WORKERS = (1, 2, 4, 8)
_SUPERVISORS = (1, 2, 4)
_NO_OP, _LONG = 0, 20
# Number of steps by the milliseconds that each burns. A sample takes about three seconds.
_STEPS = {_NO_OP: 20_000, 1: 4000, 5: 1200, _LONG: 300, 100: 60, 500: 12}
# Number of runs by the bytes of an input. Up to 100 MB per sample, and the server writes all of it.
_PAYLOADS = {100: 20_000, 1024: 20_000, 10 * 1024: 8000, 100 * 1024: 1000, 1024 * 1024: 100}


@dataclass(frozen=True)
class _Work:
    """The same work for underway and for the pool."""

    name: str
    job: Job[Any, Any, Any]
    function: Callable[[Any], Any]
    values: Sequence[Any]


def procs(context: CaseContext) -> list[Row]:
    """The pool has the same number of workers; its line shows what more processes gain on this machine."""
    rows = []
    for workers in _WORKERS:
        with context.testbed.supervisor(workers) as supervisor:
            for load in (_burning(context, _NO_OP), _burning(context, _LONG)):
                point = Point(f"{load.name} by workers", workers, str(workers))
                rows.append(_row(context, point, load, [supervisor], pool=workers))
    return _by_series(rows)


def supervisors(context: CaseContext) -> list[Row]:
    """All supervisors are on one machine: this shows what competition costs, not what more hosts gain."""
    rows = []
    for count in _SUPERVISORS:
        with ExitStack() as stack:
            serving = [stack.enter_context(context.testbed.supervisor(PROCS)) for _ in range(count)]
            for load in (_burning(context, _NO_OP), _burning(context, _LONG)):
                point = Point(f"{load.name} by supervisors", count, str(count))
                rows.append(_row(context, point, load, serving))
    return _by_series(rows)


def step_length(context: CaseContext) -> list[Row]:
    rows = []
    with context.testbed.supervisor(PROCS) as supervisor:
        for milliseconds in _STEPS:
            load = _burning(context, milliseconds)
            row = _row(context, Point("step length", milliseconds, load.name), load, [supervisor])
            if milliseconds:
                row.samples[FULL] = [PROCS * 1000 / milliseconds] * len(row.samples[OURS])
            rows.append(row)
    return rows


def payload(context: CaseContext) -> list[Row]:
    rows = []
    with context.testbed.supervisor(PROCS) as supervisor:
        for size in _PAYLOADS:
            load = _receiving(context, size)
            rows.append(_row(context, Point("payload", size, load.name), load, [supervisor]))
    return rows


def _burning(context: CaseContext, milliseconds: int) -> _Work:
    count = context.sizes.scaled(_STEPS[milliseconds])
    if milliseconds == _NO_OP:
        return _Work("no-op", app.noop, work.nothing, range(count))
    return _Work(f"{milliseconds} ms", app.burner, work.burn, [milliseconds] * count)


def _receiving(context: CaseContext, size: int) -> _Work:
    # Incompressible, as a picture is.
    noise = base64.b64encode(random.Random(size).randbytes(size)).decode()[:size]
    name = f"{size} B" if size < 1024 else f"{size // 1024} KiB" if size < 1024**2 else f"{size // 1024**2} MiB"
    return _Work(name, app.receiver, work.receive, [noise] * context.sizes.scaled(_PAYLOADS[size]))


def _row(context: CaseContext, point: Point, doing: _Work, serving: list[Supervisor], pool: int = PROCS) -> Row:
    """One point, beside a pool with this number of workers."""
    first, *others = serving
    # If there are few large inputs, the first claim may take them all.
    large = point.series == "payload"
    drain = Drain(context.testbed, first, doing.job, doing.values, *others, from_commit=large)
    drain.warm_up(max(4, len(doing.values) // 10))
    samples = context.sampler.alternate(
        {OURS: drain.sample, baselines.POOL: lambda: baselines.pool_rate(pool, doing.function, doing.values)},
        f"{point.label}, ",
    )
    notes = {"runs": len(doing.values), "cpu_microseconds_a_run": drain.cpu_microseconds}
    return Row(f"{point.series}: {point.label}", "runs/s", samples, notes=notes, point=point)


def _by_series(rows: list[Row]) -> list[Row]:
    """Sort by series. The series are measured together, because starting supervisors takes long."""
    return sorted(rows, key=lambda row: row.point is not None and row.point.series.startswith(f"{_LONG} ms"))
