"""No-op runs of one and of two steps a second."""

from benchmarks import alone, app, limits, work
from benchmarks.cases.measured import Backlog
from benchmarks.cases.setting import PROCS, Setting
from benchmarks.model import OURS, Row


def noop(setting: Setting) -> list[Row]:
    values = range(setting.sizes.runs)
    with setting.stage.supervisor(PROCS) as supervisor, alone.alone(setting.stage) as postgres:
        backlog = Backlog(setting.stage, supervisor, app.noop, values)
        backlog.warm_up(setting.sizes.warm_up)
        samples = setting.pairs.alternate(
            {
                OURS: backlog.rate,
                alone.NAME: lambda: postgres.rate(len(values)),
                limits.POOL: lambda: limits.pool_rate(PROCS, work.nothing, values),
                limits.EXECUTOR: lambda: limits.executor_rate(PROCS, work.nothing, values),
            },
        )
    notes = {"runs": len(values), "cpu_microseconds_a_run": backlog.microseconds}
    return [Row("no-op, one step", "runs/s", samples, floor=10_000, goal=30_000, notes=notes)]


def two_step(setting: Setting) -> list[Row]:
    values = range(setting.sizes.two_step)
    with setting.stage.supervisor(PROCS) as supervisor, alone.alone(setting.stage) as postgres:
        backlog = Backlog(setting.stage, supervisor, app.two_step, values)
        backlog.warm_up(setting.sizes.warm_up)
        samples = setting.pairs.alternate(
            {
                OURS: backlog.rate,
                alone.NAME: lambda: postgres.two_step_rate(len(values)),
                limits.POOL: lambda: limits.pool_two_step_rate(PROCS, values),
            },
        )
    notes = {"runs": len(values), "cpu_microseconds_a_run": backlog.microseconds}
    return [Row("no-op, two steps", "runs/s", samples, goal=15_000, notes=notes)]
