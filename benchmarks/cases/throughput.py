"""No-op runs per second, with one step and with two."""

from benchmarks import app, baselines, postgres_only, work
from benchmarks.cases.context import PROCS, CaseContext
from benchmarks.cases.drain import Drain
from benchmarks.model import OURS, Row


def noop(context: CaseContext) -> list[Row]:
    values = range(context.sizes.runs)
    with context.testbed.supervisor(PROCS) as supervisor, postgres_only.postgres_only(context.testbed) as postgres:
        drain = Drain(context.testbed, supervisor, app.noop, values)
        drain.warm_up(context.sizes.warm_up)
        samples = context.sampler.alternate(
            {
                OURS: drain.sample,
                postgres_only.NAME: lambda: postgres.rate(len(values)),
                baselines.POOL: lambda: baselines.pool_rate(PROCS, work.nothing, values),
                baselines.EXECUTOR: lambda: baselines.executor_rate(PROCS, work.nothing, values),
            },
        )
    notes = {"runs": len(values), "cpu_microseconds_a_run": drain.cpu_microseconds}
    return [Row("no-op, one step", "runs/s", samples, floor=10_000, goal=30_000, notes=notes)]


def two_step(context: CaseContext) -> list[Row]:
    values = range(context.sizes.two_step)
    with context.testbed.supervisor(PROCS) as supervisor, postgres_only.postgres_only(context.testbed) as postgres:
        drain = Drain(context.testbed, supervisor, app.two_step, values)
        drain.warm_up(context.sizes.warm_up)
        samples = context.sampler.alternate(
            {
                OURS: drain.sample,
                postgres_only.NAME: lambda: postgres.two_step_rate(len(values)),
                baselines.POOL: lambda: baselines.pool_two_step_rate(PROCS, values),
            },
        )
    notes = {"runs": len(values), "cpu_microseconds_a_run": drain.cpu_microseconds}
    return [Row("no-op, two steps", "runs/s", samples, goal=15_000, notes=notes)]
