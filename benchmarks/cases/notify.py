"""Enqueues by many concurrent sessions, one transaction each, and what waking a supervisor costs them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import psycopg

from benchmarks import app, pgbench
from benchmarks.cases.context import PROCS, CaseContext
from benchmarks.model import OURS, Row
from benchmarks.testbed import Testbed
from underway.definition.manifest import Placement
from underway.postgres.queries import statements
from underway.postgres.supervisor_store import job_parameters

# No supervisor serves these jobs: a supervisor that is woken finds nothing to do and stays idle.
_STEP = "first"
_JOBS = {"unserved": Placement(), "unserved-elsewhere": Placement(queue="elsewhere")}
_INPUT = '{"order_id": 42}'
# More than a supervisor claims at once, so that it never finds the queue empty and declares itself idle.
_BUSY_WITH = 50
_WITHOUT = "no supervisor"


def run(context: CaseContext) -> list[Row]:
    with psycopg.connect(context.testbed.url, autocommit=True) as connection:
        for job, placement in _JOBS.items():
            connection.execute(statements()["register_job"], job_parameters(job, _STEP, placement))
        here, there = (
            {"enqueue": _from_python(connection, job), "SQL enqueue": _from_sql(connection, job)} for job in _JOBS
        )
    beside = {"busy": (_busy, here), "idle": (_idle, here), "idle, elsewhere": (_idle, there), _WITHOUT: (_none, here)}
    samples = context.sampler.alternate(
        {name: partial(_rates, context, supervisor, enqueues) for name, (supervisor, enqueues) in beside.items()}
    )
    context.testbed.empty()

    def row(enqueue: str, supervisor: str) -> Row:
        ours, without = ([rates[enqueue] for rates in samples[variant]] for variant in (supervisor, _WITHOUT))
        name = f"{enqueue} x{pgbench.SESSIONS}: {supervisor}"
        return Row(name, "tx/s", {OURS: ours, _WITHOUT: without})

    return [row(enqueue, supervisor) for enqueue in here for supervisor in beside if supervisor != _WITHOUT]


def _rates(
    context: CaseContext, supervisor: Callable[[Testbed], AbstractContextManager[None]], enqueues: dict[str, str]
) -> dict[str, float]:
    context.testbed.empty()
    with supervisor(context.testbed):
        return {
            name: pgbench.rate(context.testbed, statement, context.sizes.enqueues)
            for name, statement in enqueues.items()
        }


@contextmanager
def _none(testbed: Testbed) -> Iterator[None]:
    yield


@contextmanager
def _busy(testbed: Testbed) -> Iterator[None]:
    """A supervisor whose workers all sleep: it is busy but uses no CPU."""
    app.announcer.enqueue_many(["no listener"] * _BUSY_WITH)
    with testbed.supervisor(PROCS):
        testbed.await_true(
            "select count(*) >= %s from underway.run where state = 'in_progress'", PROCS, otherwise="nothing is claimed"
        )
        _await_label(testbed, idle=False)
        yield


@contextmanager
def _idle(testbed: Testbed) -> Iterator[None]:
    """A supervisor that each enqueue into its queue notifies; it then looks for work."""
    with testbed.supervisor(PROCS):
        _await_label(testbed, idle=True)
        yield


def _await_label(testbed: Testbed, *, idle: bool) -> None:
    testbed.await_true(
        "select coalesce(bool_and(idle = %s), false) from underway.supervisor",
        idle,
        otherwise=f"the supervisor does not become {'idle' if idle else 'busy'}",
    )


def _from_python(connection: psycopg.Connection[tuple[object, ...]], job: str) -> str:
    """The statement of Job.enqueue, except that the server makes the ID, not the client."""
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
