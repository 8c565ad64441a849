"""What Postgres allows, whatever claims and commits there: the limit of all no-op figures."""

from collections.abc import Callable
from functools import partial

from benchmarks.alone import alone
from benchmarks.cases.setting import Setting
from benchmarks.model import OURS, Row

_BATCHES = (1, 10, 50, 200, 500)
# Enough for a rate: one by one, a run takes a hundred times as long as among many.
_MOST_TURNS = 500


def run(setting: Setting) -> list[Row]:
    with alone(setting.stage) as postgres:
        postgres.two_step_rate(min(setting.sizes.warm_up, setting.sizes.runs))
        forms: dict[str, Callable[[], float]] = {
            f"Postgres alone, {batch} at once": partial(
                postgres.rate, min(setting.sizes.runs, _MOST_TURNS * batch), batch
            )
            for batch in _BATCHES
        }
        forms["Postgres alone, two steps"] = partial(postgres.two_step_rate, setting.sizes.two_step)
        samples = setting.pairs.alternate(forms)
    return [Row(name, "runs/s", {OURS: taken}) for name, taken in samples.items()]
