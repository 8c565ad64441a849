"""How much of the machine is left for the work when the steps burn CPU: the share of multiprocessing.Pool."""

from benchmarks import app, limits, work
from benchmarks.cases.measured import Backlog
from benchmarks.cases.setting import PROCS, Setting
from benchmarks.model import OURS, Row
from benchmarks.stage import Supervisor

# Milliseconds: (floor, goal) of the share.
_SHARES = {20: (0.95, 0.98), 200: (None, 0.995)}


def run(setting: Setting) -> list[Row]:
    with setting.stage.supervisor(PROCS) as supervisor:
        return [_burn(setting, supervisor, *size) for size in setting.sizes.cpu]


def _burn(setting: Setting, supervisor: Supervisor, milliseconds: int, tasks: int) -> Row:
    values = [milliseconds] * tasks
    backlog = Backlog(setting.stage, supervisor, app.burner, values)
    backlog.warm_up(max(4, tasks // 10))
    samples = setting.pairs.alternate(
        {
            OURS: backlog.rate,
            limits.POOL: lambda: limits.pool_rate(PROCS, work.burn, values),
            limits.EXECUTOR: lambda: limits.executor_rate(PROCS, work.burn, values),
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
        judged_by=limits.POOL,
        notes={"tasks": tasks, "cpu_microseconds_a_run": backlog.microseconds},
    )
