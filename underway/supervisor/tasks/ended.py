"""An attempt that has ended, on its way to Postgres."""

from typing import NamedTuple

from underway.postgres.transitions import AdvanceRun, FinishRun
from underway.supervisor.tasks.task import Task
from underway.wire import messages

# Enqueuing a run takes a statement as long as this much payload.
_SPAWN_BYTES = 1024


class Ended(NamedTuple):
    task: Task
    row: FinishRun | AdvanceRun
    spawned: list[messages.Spawn]

    @property
    def size(self) -> int:
        """How many bytes it adds to a statement, about."""
        size = len(self.row.payload or b"") + len(self.row.attempt.error or "")
        if self.spawned:
            size += sum(_SPAWN_BYTES + len(spawn["input"]) for spawn in self.spawned)
        return size

    @property
    def may_stay(self) -> bool:
        """The run's next step may be our next task: a claim must not take the place for it meanwhile."""
        return isinstance(self.row, AdvanceRun) and goes_on_now(self.row)

    @property
    def is_awaited(self) -> bool:
        """Another run, or the next step of this one, can start when this is durable."""
        return isinstance(self.row, AdvanceRun) or self.task.holds_key or self.task.suspect or bool(self.spawned)


def goes_on_now(row: AdvanceRun) -> bool:
    """The next step can start at once."""
    return row.payload is not None and not row.delay and row.concurrency_key is None
