"""How much of the machine is left for steps that burn CPU, as a share of what multiprocessing.Pool achieves."""

from benchmarks import app, baselines, work
from benchmarks.cases.context import PROCS, CaseContext
from benchmarks.cases.drain import Drain
from benchmarks.model import OURS, Row
from benchmarks.testbed import Supervisor

# By milliseconds: floor and goal of that share.
_SHARES = {20: (0.95, 0.98), 200: (None, 0.995)}


def run(context: CaseContext) -> list[Row]:
    with context.testbed.supervisor(PROCS) as supervisor:
        return [_burn(context, supervisor, *size) for size in context.sizes.cpu]


def _burn(context: CaseContext, supervisor: Supervisor, milliseconds: int, tasks: int) -> Row:
    values = [milliseconds] * tasks
    drain = Drain(context.testbed, supervisor, app.burner, values)
    drain.warm_up(max(4, tasks // 10))
    samples = context.sampler.alternate(
        {
            OURS: drain.sample,
            baselines.POOL: lambda: baselines.pool_rate(PROCS, work.burn, values),
            baselines.EXECUTOR: lambda: baselines.executor_rate(PROCS, work.burn, values),
        },
        f"{milliseconds} ms, ",
    )
    floor, goal = _SHARES.get(milliseconds, (None, None))
    return Row(
        f"CPU, {milliseconds} ms a task",
        "tasks/s",
        samples,
        floor=floor,
        goal=goal,
        judged_by=baselines.POOL,
        notes={"tasks": tasks, "cpu_microseconds_a_run": drain.cpu_microseconds},
    )
