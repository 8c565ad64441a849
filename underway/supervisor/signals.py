"""What the parts of a supervisor tell each other. Service connects each signal to its listeners."""

from collections.abc import Callable
from typing import Generic, ParamSpec

from underway.supervisor.tasks.task import Task

P = ParamSpec("P")


class Signal(Generic[P]):
    """Calls its listeners at once, in the order in which they were connected."""

    def __init__(self) -> None:
        self._listeners: list[Callable[P, None]] = []

    def connect(self, *listeners: Callable[P, None]) -> None:
        self._listeners += listeners

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> None:
        for listener in self._listeners:
            listener(*args, **kwargs)


class Signals:
    """One attribute for each thing that can happen."""

    def __init__(self) -> None:
        self.run_pending: Signal[[]] = Signal()  # a run that can be claimed may exist
        self.run_due_in: Signal[[float]] = Signal()  # a waiting run is due in this many seconds, or waits for its key
        self.commits_have_room: Signal[[]] = Signal()  # after a commit, if results are not backpressured
        self.next_steps: Signal[[list[Task]]] = Signal()  # tasks of runs that stay here for their next step
        # A run may be ours under a token that this supervisor never received.
        self.unknown_runs: Signal[[]] = Signal()
        self.task_lost: Signal[[Task]] = Signal()
        self.messages_processed: Signal[[]] = Signal()  # a batch of a worker's messages: workers may be free
        self.nothing_claimed: Signal[[]] = Signal()
        self.registered: Signal[[]] = Signal()  # this supervisor's row was written
        self.notified: Signal[[str]] = Signal()  # a NOTIFY with its payload, "" for any that may have been missed

    def run_placed(self, delay: float = 0.0) -> None:
        """A run was enqueued, or placed at its next step, with this delay."""
        if delay > 0:
            self.run_due_in(delay)
        else:
            self.run_pending()
