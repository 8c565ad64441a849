"""Runs enqueued a second by enqueue_many, beside a bare COPY of the very same rows."""

import time

from benchmarks import app
from benchmarks.cases.setting import Setting
from benchmarks.model import OURS, Row
from benchmarks.stage import Stage

_COPY = "bare COPY of the same rows"


def run(setting: Setting) -> list[Row]:
    values = range(setting.sizes.bulk)
    setting.stage.empty()
    app.noop.enqueue_many(values)
    rows = setting.stage.exported()

    def ours() -> float:
        setting.stage.empty()
        began = time.perf_counter()
        app.noop.enqueue_many(values)
        return len(values) / (time.perf_counter() - began)

    samples = setting.pairs.alternate({OURS: ours, _COPY: lambda: _bare(setting.stage, rows, len(values))})
    setting.stage.empty()
    return [Row("enqueue_many", "runs/s", samples, goal=100_000, notes={"runs": len(values)})]


def _bare(stage: Stage, rows: bytes, count: int) -> float:
    stage.empty()
    began = time.perf_counter()
    stage.imported(rows)
    return count / (time.perf_counter() - began)
