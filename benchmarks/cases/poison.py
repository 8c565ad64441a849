"""Throughput of the other runs while poisonous runs kill one worker after another."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks import app
from benchmarks.cases.context import PROCS, CaseContext
from benchmarks.model import OURS, Row
from benchmarks.testbed import Supervisor, Testbed
from underway import Job

# The interval between poisonous runs; each kills three workers before it is quarantined.
EVERY_SECONDS = 6.0
WITHOUT = "without poison"
_POLL_SECONDS = 0.25


def run(context: CaseContext) -> list[Row]:
    return [
        _beside_poison(context, "no-op", app.noop, range(context.sizes.scaled(200_000))),
        _beside_poison(context, "20 ms", app.burner, [20] * context.sizes.scaled(1500)),
    ]


def _beside_poison(context: CaseContext, name: str, job: Job[Any, Any, Any], values: Sequence[int]) -> Row:
    with context.testbed.supervisor(PROCS) as supervisor:
        samples, deaths = _samples(context, supervisor, name, job, values)
    notes = {"runs": len(values), "seconds between poisonous runs": EVERY_SECONDS, "workers killed": deaths}
    return Row(f"beside poison, {name}", "runs/s", samples, goal=0.9, judged_by=WITHOUT, notes=notes)


def _samples(
    context: CaseContext, supervisor: Supervisor, name: str, job: Job[Any, Any, Any], values: Sequence[int]
) -> tuple[dict[str, list[float]], list[int]]:
    """The samples, and the number of workers killed in each poisoned one."""
    deaths: list[int] = []

    def poisoned() -> float:
        with _poison(context.testbed):
            rate = _rate(context.testbed, job, values)
        deaths.append(context.testbed.value("select count(*) from underway.attempt where outcome = 'crashed'"))
        supervisor.await_boots(PROCS + 1 + sum(deaths))  # or the next sample would include the boot of the last spare
        return rate

    variants = {OURS: poisoned, WITHOUT: lambda: _rate(context.testbed, job, values)}
    return context.sampler.alternate(variants, f"{name}, "), deaths


def _rate(testbed: Testbed, job: Job[Any, Any, Any], values: Sequence[int]) -> float:
    """The rate of these runs only, by the database's clock."""
    testbed.clear()
    job.enqueue_many(values)
    while testbed.value("select exists (select from underway.run where job = %s)", job.name):
        time.sleep(_POLL_SECONDS)
    finished, seconds = testbed.value(
        "select array[count(*), extract(epoch from max(f.finished_at) - min(a.started_at))]"
        " from underway.finished_run f join underway.attempt a on a.run_id = f.id"
        " where f.job = %s and f.state = 'succeeded'",
        job.name,
    )
    if finished != len(values):
        raise AssertionError(f"only {finished} of {len(values)} runs succeeded: the measurement is invalid")
    return len(values) / float(seconds)


@contextmanager
def _poison(testbed: Testbed) -> Iterator[None]:
    stop = threading.Event()

    def enqueue_poison() -> None:
        while True:
            app.poison.enqueue(0)
            if stop.wait(EVERY_SECONDS):
                return

    thread = threading.Thread(target=enqueue_poison)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        app.poison.cancel_all()
        testbed.await_true(
            "select not exists (select from underway.run)", otherwise="the poisonous runs were not removed"
        )
