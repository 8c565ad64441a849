"""What is left of everybody's throughput while some runs kill their worker again and again."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks import app
from benchmarks.cases.setting import PROCS, Setting
from benchmarks.model import OURS, Row
from benchmarks.stage import Stage, Supervisor
from underway import Job

# A new one every so often; each kills three workers before it is quarantined.
EVERY_SECONDS = 6.0
WITHOUT = "without poison"
_LOOK_SECONDS = 0.25


def run(setting: Setting) -> list[Row]:
    return [
        _beside_poison(setting, "no-op", app.noop, range(setting.sizes.scaled(200_000))),
        _beside_poison(setting, "20 ms", app.burner, [20] * setting.sizes.scaled(1500)),
    ]


def _beside_poison(setting: Setting, name: str, job: Job[Any, Any, Any], values: Sequence[int]) -> Row:
    with setting.stage.supervisor(PROCS) as supervisor:
        samples, deaths = _samples(setting, supervisor, name, job, values)
    notes = {"runs": len(values), "a poisonous run every so many seconds": EVERY_SECONDS, "workers killed": deaths}
    return Row(f"beside poison, {name}", "runs/s", samples, goal=0.9, judged_by=WITHOUT, notes=notes)


def _samples(
    setting: Setting, supervisor: Supervisor, name: str, job: Job[Any, Any, Any], values: Sequence[int]
) -> tuple[dict[str, list[float]], list[int]]:
    """And how many workers were killed in each of ours."""
    deaths: list[int] = []

    def poisoned() -> float:
        with _poison(setting.stage):
            rate = _rate(setting.stage, job, values)
        deaths.append(setting.stage.value("select count(*) from underway.attempt where outcome = 'crashed'"))
        supervisor.await_boots(PROCS + 1 + sum(deaths))  # or the next sample would pay for the last spare
        return rate

    forms = {OURS: poisoned, WITHOUT: lambda: _rate(setting.stage, job, values)}
    return setting.pairs.alternate(forms, f"{name}, "), deaths


def _rate(stage: Stage, job: Job[Any, Any, Any], values: Sequence[int]) -> float:
    """Of these runs alone, by the database's clock."""
    stage.clear()
    job.enqueue_many(values)
    while stage.value("select exists (select from underway.run where job = %s)", job.name):
        time.sleep(_LOOK_SECONDS)
    finished, seconds = stage.value(
        "select array[count(*), extract(epoch from max(f.finished_at) - min(a.started_at))]"
        " from underway.finished_run f join underway.attempt a on a.run_id = f.id"
        " where f.job = %s and f.state = 'succeeded'",
        job.name,
    )
    if finished != len(values):
        raise AssertionError(f"{finished} of {len(values)} runs succeeded: this measurement is worth nothing")
    return len(values) / float(seconds)


@contextmanager
def _poison(stage: Stage) -> Iterator[None]:
    over = threading.Event()

    def pour() -> None:
        while True:
            app.poison.enqueue(0)
            if over.wait(EVERY_SECONDS):
                return

    pouring = threading.Thread(target=pour)
    pouring.start()
    try:
        yield
    finally:
        over.set()
        pouring.join()
        app.poison.cancel_all()
        stage.await_true("select not exists (select from underway.run)", otherwise="poison is left")
