"""Which runs stay with this supervisor for their next step, and the tasks for those steps."""

from collections.abc import Mapping, Sequence

from underway.definition.manifest import Lane, Step
from underway.postgres.transitions import AdvanceRun
from underway.supervisor.tasks.dispatch import Dispatch
from underway.supervisor.tasks.ended import Ended, goes_on_now
from underway.supervisor.tasks.task import Task, from_hand_over


class NextSteps:
    """A run stays if a worker here can run its next step and will be free for it: that saves a claim."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch

    def staying(self, rows: Sequence[AdvanceRun], group: Sequence[Ended]) -> list[Step | None]:
        """For each row the next step, or None if the run does not stay."""
        free = self._dispatch.free_capacity()
        steps: list[Step | None] = []
        for row, ended in zip(rows, group, strict=True):
            step = None
            if free > 0 and goes_on_now(row) and row.queue is not None:
                step = self._dispatch.lanes.get(Lane(row.queue, ended.task.lane.job, row.step))
            free -= step is not None
            steps.append(step)
        return steps

    @staticmethod
    def tasks(
        rows: Sequence[AdvanceRun],
        group: Sequence[Ended],
        steps: Sequence[Step | None],
        tokens: Mapping[int, int | None],
        leased_from: float,
    ) -> list[Task]:
        """The tasks of the runs that stayed: `tokens` has the new token for the token of each hand-over."""
        return [
            from_hand_over(ended.task, row, token, step, leased_from)
            for row, ended, step in zip(rows, group, steps, strict=True)
            if step is not None and (token := tokens.get(ended.task.token)) is not None
        ]
