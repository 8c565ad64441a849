"""Runs enqueued per second by enqueue_many, beside a bare COPY of the same rows."""

import time

from benchmarks import app
from benchmarks.cases.context import CaseContext
from benchmarks.model import OURS, Row
from benchmarks.testbed import Testbed

_COPY = "bare COPY of the same rows"


def run(context: CaseContext) -> list[Row]:
    values = range(context.sizes.bulk)
    context.testbed.empty()
    app.noop.enqueue_many(values)
    rows = context.testbed.export_runs()

    def ours() -> float:
        context.testbed.empty()
        began = time.perf_counter()
        app.noop.enqueue_many(values)
        return len(values) / (time.perf_counter() - began)

    samples = context.sampler.alternate({OURS: ours, _COPY: lambda: _bare(context.testbed, rows, len(values))})
    context.testbed.empty()
    return [Row("enqueue_many", "runs/s", samples, goal=100_000, notes={"runs": len(values)})]


def _bare(testbed: Testbed, rows: bytes, count: int) -> float:
    testbed.empty()
    began = time.perf_counter()
    testbed.import_runs(rows)
    return count / (time.perf_counter() - began)
