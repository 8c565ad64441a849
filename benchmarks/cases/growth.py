"""How throughput grows: with workers, with the size of the payload, with the length of a step, with supervisors."""

import base64
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from benchmarks import app, limits, work
from benchmarks.cases.measured import Backlog
from benchmarks.cases.setting import PROCS, Setting
from benchmarks.model import OURS, Point, Row
from benchmarks.stage import Supervisor
from underway import Job

# The CPU time of all workers, without a moment's pause, spent on the steps alone.
FULL = f"{PROCS} workers, no overhead"
_WORKERS = (1, 2, 4, 8)
_SUPERVISORS = (1, 2, 4)
_NO_OP, _LONG = 0, 20
# The milliseconds that a step burns: how many of them. A sample takes some three seconds.
_STEPS = {_NO_OP: 20_000, 1: 4000, 5: 1200, _LONG: 300, 100: 60, 500: 12}
# The bytes of an input: how many of them. Up to 100 MB a sample, all of which the server has to write.
_PAYLOADS = {100: 20_000, 1024: 20_000, 10 * 1024: 8000, 100 * 1024: 1000, 1024 * 1024: 100}


@dataclass(frozen=True)
class _Work:
    """What is done, the same by underway and by the pool."""

    name: str
    job: Job[Any, Any, Any]
    function: Callable[[Any], Any]
    values: Sequence[Any]


def procs(setting: Setting) -> list[Row]:
    """The pool has as many workers: its line is what more processes are worth on this machine."""
    rows = []
    for workers in _WORKERS:
        with setting.stage.supervisor(workers) as supervisor:
            for load in (_burning(setting, _NO_OP), _burning(setting, _LONG)):
                point = Point(f"{load.name} by workers", workers, str(workers))
                rows.append(_row(setting, point, load, [supervisor], pool=workers))
    return _by_series(rows)


def supervisors(setting: Setting) -> list[Row]:
    """All on one machine, unlike those of a fleet: it shows what their competition costs, not what they gain."""
    rows = []
    for count in _SUPERVISORS:
        with ExitStack() as stack:
            serving = [stack.enter_context(setting.stage.supervisor(PROCS)) for _ in range(count)]
            for load in (_burning(setting, _NO_OP), _burning(setting, _LONG)):
                point = Point(f"{load.name} by supervisors", count, str(count))
                rows.append(_row(setting, point, load, serving))
    return _by_series(rows)


def step_length(setting: Setting) -> list[Row]:
    rows = []
    with setting.stage.supervisor(PROCS) as supervisor:
        for milliseconds in _STEPS:
            load = _burning(setting, milliseconds)
            row = _row(setting, Point("step length", milliseconds, load.name), load, [supervisor])
            if milliseconds:
                row.samples[FULL] = [PROCS * 1000 / milliseconds] * len(row.samples[OURS])
            rows.append(row)
    return rows


def payload(setting: Setting) -> list[Row]:
    rows = []
    with setting.stage.supervisor(PROCS) as supervisor:
        for size in _PAYLOADS:
            load = _weighing(setting, size)
            rows.append(_row(setting, Point("payload", size, load.name), load, [supervisor]))
    return rows


def _burning(setting: Setting, milliseconds: int) -> _Work:
    count = setting.sizes.scaled(_STEPS[milliseconds])
    if milliseconds == _NO_OP:
        return _Work("no-op", app.noop, work.nothing, range(count))
    return _Work(f"{milliseconds} ms", app.burner, work.burn, [milliseconds] * count)


def _weighing(setting: Setting, size: int) -> _Work:
    # Nothing that Postgres could compress, as in a picture.
    noise = base64.b64encode(random.Random(size).randbytes(size)).decode()[:size]
    name = f"{size} B" if size < 1024 else f"{size // 1024} KiB" if size < 1024**2 else f"{size // 1024**2} MiB"
    return _Work(name, app.weighers, work.weigh, [noise] * setting.sizes.scaled(_PAYLOADS[size]))


def _row(setting: Setting, point: Point, doing: _Work, serving: list[Supervisor], pool: int = PROCS) -> Row:
    """One point, beside a pool of so many workers."""
    first, *others = serving
    # The first claim may take all of a few large inputs.
    large = point.series == "payload"
    backlog = Backlog(setting.stage, first, doing.job, doing.values, *others, from_commit=large)
    backlog.warm_up(max(4, len(doing.values) // 10))
    samples = setting.pairs.alternate(
        {OURS: backlog.rate, limits.POOL: lambda: limits.pool_rate(pool, doing.function, doing.values)},
        f"{point.label}, ",
    )
    notes = {"runs": len(doing.values), "cpu_microseconds_a_run": backlog.microseconds}
    return Row(f"{point.series}: {point.label}", "runs/s", samples, notes=notes, point=point)


def _by_series(rows: list[Row]) -> list[Row]:
    """They are measured side by side, since supervisors take long to start, and read one series after the other."""
    return sorted(rows, key=lambda row: row.point is not None and row.point.series.startswith(f"{_LONG} ms"))
