"""Latency from the call of enqueue to the first line of the step, on an idle supervisor."""

import random
import time
from collections.abc import Callable
from functools import partial
from itertools import chain
from statistics import median

from benchmarks import app, baselines, work
from benchmarks.cases.context import PROCS, CaseContext
from benchmarks.model import OURS, Row, percentile

# Random pauses between samples, so that they do not synchronize with anything periodic.
_PAUSES = (0.02, 0.05)
_WARM_UP = 10


def run(context: CaseContext) -> list[Row]:
    variants = {OURS: _ours, baselines.POOL: _pool, baselines.EXECUTOR: _executor}
    with context.testbed.supervisor(PROCS):
        samples = context.sampler.alternate({name: partial(variant, context) for name, variant in variants.items()})
    medians = {name: [median(sample) for sample in taken] for name, taken in samples.items()}
    high = {name: [percentile(list(chain(*taken)), 0.99)] for name, taken in samples.items()}
    notes: dict[str, object] = {"milliseconds": [round(value, 3) for value in chain(*samples[OURS])]}
    return [
        Row("idle latency, median", "ms", medians, lower_is_better=True, floor=5, goal=3, notes=notes),
        Row("idle latency, 99th percentile", "ms", high, lower_is_better=True, goal=6),
    ]


def _ours(context: CaseContext) -> list[float]:
    context.testbed.clear()
    called = {}
    for _ in range(_WARM_UP + context.sizes.latencies):
        _pause()
        now = time.monotonic_ns()
        called[app.clock_reader.enqueue(0).id] = now
    context.testbed.await_true(
        "select count(*) >= %s from underway.finished_run", len(called), otherwise="the runs did not finish"
    )
    reached = context.testbed.rows("select id, result::text::int8 from underway.finished_run")
    milliseconds = {run: (at - called[run]) / 1e6 for run, at in reached}
    return [milliseconds[run] for run in list(called)[_WARM_UP:]]


def _pool(context: CaseContext) -> list[float]:
    with baselines.pool(PROCS) as pool:
        return _in_process(context.sizes.latencies, lambda: pool.apply(work.read_clock, (0,)))


def _executor(context: CaseContext) -> list[float]:
    with baselines.executor(PROCS) as executor:
        return _in_process(context.sizes.latencies, lambda: executor.submit(work.read_clock, 0).result())


def _in_process(samples: int, call: Callable[[], int]) -> list[float]:
    milliseconds = []
    for _ in range(samples):
        _pause()
        now = time.monotonic_ns()
        milliseconds.append((call() - now) / 1e6)
    return milliseconds


def _pause() -> None:
    time.sleep(random.uniform(*_PAUSES))
