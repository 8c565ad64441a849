"""underway: a supervisor and its workers."""

import os
import sys
from datetime import timedelta

from benchmarks.peers.inside import database, options, postgres, tasks
from underway import Context, Done, To, Underway

app = Underway(database())


def nothing(cx: Context, value: int) -> Done:
    tasks.nothing(value)
    return To.done()


def burn(cx: Context, milliseconds: int) -> Done:
    tasks.burn(milliseconds)
    return To.done()


def hold(cx: Context, value: int) -> Done:
    tasks.hold(value)
    return To.done()


_lease = timedelta(seconds=options()["rescue"])
_jobs = {step.__name__: app.job(step.__name__).step(step, lease=_lease) for step in (nothing, burn, hold)}


def prepare() -> None:
    app.migrate()


def enqueue(task: str, values: list[int]) -> None:
    if len(values) == 1:
        _jobs[task].enqueue(values[0])
    else:
        _jobs[task].enqueue_many(values)


def unfinished() -> int:
    return postgres.count("underway.run")


def finished_at() -> float | None:
    return postgres.latest("finished_at", "underway.finished_run")


def run_worker() -> None:
    procs = str(options()["procs"])
    arguments = ["-m", "underway.cli.supervisor", "benchmarks.peers.inside.underway_app:app", "--procs", procs]
    os.execv(sys.executable, [sys.executable, *arguments])
