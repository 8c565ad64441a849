"""From the call of enqueue to the first line of the step, while the supervisor has nothing else to do."""

import random
import time
from collections.abc import Callable
from functools import partial
from itertools import chain
from statistics import median

from benchmarks import app, limits, work
from benchmarks.cases.setting import PROCS, Setting
from benchmarks.model import OURS, Row, percentile

# Between samples, uneven: nothing periodic on either side may fall into step with it.
_PAUSES = (0.02, 0.05)
_WARM_UP = 10


def run(setting: Setting) -> list[Row]:
    forms = {OURS: _ours, limits.POOL: _pool, limits.EXECUTOR: _executor}
    with setting.stage.supervisor(PROCS):
        samples = setting.pairs.alternate({name: partial(form, setting) for name, form in forms.items()})
    medians = {name: [median(sample) for sample in taken] for name, taken in samples.items()}
    high = {name: [percentile(list(chain(*taken)), 0.99)] for name, taken in samples.items()}
    notes: dict[str, object] = {"milliseconds": [round(value, 3) for value in chain(*samples[OURS])]}
    return [
        Row("idle latency, median", "ms", medians, lower_is_better=True, floor=5, goal=3, notes=notes),
        Row("idle latency, 99th percentile", "ms", high, lower_is_better=True, goal=6),
    ]


def _ours(setting: Setting) -> list[float]:
    setting.stage.clear()
    called = {}
    for _ in range(_WARM_UP + setting.sizes.latencies):
        _pause()
        now = time.monotonic_ns()
        called[app.clocks.enqueue(0).id] = now
    setting.stage.await_true(
        "select count(*) >= %s from underway.finished_run", len(called), otherwise="the runs do not finish"
    )
    reached = setting.stage.rows("select id, result::text::int8 from underway.finished_run")
    milliseconds = {run: (at - called[run]) / 1e6 for run, at in reached}
    return [milliseconds[run] for run in list(called)[_WARM_UP:]]


def _pool(setting: Setting) -> list[float]:
    with limits.pool(PROCS) as pool:
        return _in_process(setting.sizes.latencies, lambda: pool.apply(work.clock, (0,)))


def _executor(setting: Setting) -> list[float]:
    with limits.executor(PROCS) as executor:
        return _in_process(setting.sizes.latencies, lambda: executor.submit(work.clock, 0).result())


def _in_process(samples: int, call: Callable[[], int]) -> list[float]:
    milliseconds = []
    for _ in range(samples):
        _pause()
        now = time.monotonic_ns()
        milliseconds.append((call() - now) / 1e6)
    return milliseconds


def _pause() -> None:
    time.sleep(random.uniform(*_PAUSES))
