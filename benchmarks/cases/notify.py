"""Enqueues by many sessions at once, each in a transaction of its own, and what it costs them to wake a supervisor."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import psycopg

from benchmarks import app, pgbench
from benchmarks.cases.setting import PROCS, Setting
from benchmarks.model import OURS, Row
from benchmarks.stage import Stage
from underway.definition.manifest import Placement
from underway.postgres.queries import statements
from underway.postgres.supervisor_store import job_parameters

# Nobody serves them: a supervisor that is woken finds nothing to do, and stays idle.
_STEP = "first"
_JOBS = {"of-nobody-here": Placement(), "of-nobody-there": Placement(queue="there")}
_INPUT = '{"order_id": 42}'
# More than a supervisor takes at once, so that it never finds the line empty and calls itself idle.
_BUSY_WITH = 50
_WITHOUT = "no supervisor"


def run(setting: Setting) -> list[Row]:
    with psycopg.connect(setting.stage.url, autocommit=True) as connection:
        for job, placement in _JOBS.items():
            connection.execute(statements()["register_job"], job_parameters(job, _STEP, placement))
        here, there = (
            {"enqueue": _from_python(connection, job), "SQL enqueue": _from_sql(connection, job)} for job in _JOBS
        )
    beside = {"busy": (_busy, here), "idle": (_idle, here), "idle, elsewhere": (_idle, there), _WITHOUT: (_none, here)}
    samples = setting.pairs.alternate(
        {name: partial(_rates, setting, supervisor, enqueues) for name, (supervisor, enqueues) in beside.items()}
    )
    setting.stage.empty()

    def row(enqueue: str, supervisor: str) -> Row:
        ours, without = ([rates[enqueue] for rates in samples[form]] for form in (supervisor, _WITHOUT))
        name = f"{enqueue} x{pgbench.SESSIONS}: {supervisor}"
        return Row(name, "tx/s", {OURS: ours, _WITHOUT: without})

    return [row(enqueue, supervisor) for enqueue in here for supervisor in beside if supervisor != _WITHOUT]


def _rates(
    setting: Setting, supervisor: Callable[[Stage], AbstractContextManager[None]], enqueues: dict[str, str]
) -> dict[str, float]:
    setting.stage.empty()
    with supervisor(setting.stage):
        return {
            name: pgbench.rate(setting.stage, statement, setting.sizes.enqueues) for name, statement in enqueues.items()
        }


@contextmanager
def _none(stage: Stage) -> Iterator[None]:
    yield


@contextmanager
def _busy(stage: Stage) -> Iterator[None]:
    """All its workers sleep: it takes nothing from the machine."""
    app.announcers.enqueue_many(["nobody hears it"] * _BUSY_WITH)
    with stage.supervisor(PROCS):
        stage.await_true(
            "select count(*) >= %s from underway.run where state = 'in_progress'", PROCS, otherwise="nothing is claimed"
        )
        _await_label(stage, idle=False)
        yield


@contextmanager
def _idle(stage: Stage) -> Iterator[None]:
    """Each enqueue in the queue that it serves notifies it, and it looks for work that it could do."""
    with stage.supervisor(PROCS):
        _await_label(stage, idle=True)
        yield


def _await_label(stage: Stage, *, idle: bool) -> None:
    stage.await_true(
        "select coalesce(bool_and(idle = %s), false) from underway.supervisor",
        idle,
        otherwise=f"the supervisor does not become {'idle' if idle else 'busy'}",
    )


def _from_python(connection: psycopg.Connection[tuple[object, ...]], job: str) -> str:
    """What Job.enqueue sends, but for the id, which is the client's there."""
    placement = _JOBS[job]
    parameters = {
        "job": job,
        "step": _STEP,
        "queue": placement.queue,
        "priority": placement.priority,
        "keep": placement.keep,
        "delay": placement.delay.total_seconds(),
        "input": _INPUT,
    }
    statement = statements()["enqueue_run"].replace("%(id)s", "uuidv7()")
    return psycopg.ClientCursor(connection).mogrify(statement, parameters)


def _from_sql(connection: psycopg.Connection[tuple[object, ...]], job: str) -> str:
    return psycopg.ClientCursor(connection).mogrify("select underway.enqueue(%s, %s)", (job, _INPUT))
