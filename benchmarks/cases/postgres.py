"""How many claims and commits Postgres itself can do: the upper bound of all no-op figures."""

from collections.abc import Callable
from functools import partial

from benchmarks.cases.context import CaseContext
from benchmarks.model import OURS, Row
from benchmarks.postgres_only import postgres_only

_BATCHES = (1, 10, 50, 200, 500)
# Enough for a rate: claimed one at a time, a run takes a hundred times as long as in a large batch.
_MOST_TURNS = 500


def run(context: CaseContext) -> list[Row]:
    with postgres_only(context.testbed) as postgres:
        postgres.two_step_rate(min(context.sizes.warm_up, context.sizes.runs))
        variants: dict[str, Callable[[], float]] = {
            f"Postgres alone, {batch} at once": partial(
                postgres.rate, min(context.sizes.runs, _MOST_TURNS * batch), batch
            )
            for batch in _BATCHES
        }
        variants["Postgres alone, two steps"] = partial(postgres.two_step_rate, context.sizes.two_step)
        samples = context.sampler.alternate(variants)
    return [Row(name, "runs/s", {OURS: taken}) for name, taken in samples.items()]
