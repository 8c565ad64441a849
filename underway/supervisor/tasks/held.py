"""The tasks that a supervisor holds: their legal transitions, and the questions that its loops ask about them."""

from collections.abc import Iterable, Iterator
from typing import NoReturn

from underway.supervisor.tasks.state import TRANSITIONS, Event, IllegalTransition, TaskState
from underway.supervisor.tasks.task import Task, Worker

# Bound once: each run passes several of these.
_HAND, _REVOKE, _START = TRANSITIONS[Event.HAND], TRANSITIONS[Event.REVOKE], TRANSITIONS[Event.START]
_REQUEUE, _DIE, _END = TRANSITIONS[Event.REQUEUE], TRANSITIONS[Event.DIE], TRANSITIONS[Event.END]
_COMMIT, _LOSE, _ABANDON = TRANSITIONS[Event.COMMIT], TRANSITIONS[Event.LOSE], TRANSITIONS[Event.ABANDON]


class HeldTasks:
    """From the claim until the end of the attempt is durable, or the run is lost. Leases are renewed for these."""

    def __init__(self) -> None:
        self._tasks: dict[int, Task] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks.values())

    def __contains__(self, token: int) -> bool:
        return token in self._tasks

    def get(self, token: int) -> Task | None:
        return self._tasks.get(token)

    def add(self, tasks: Iterable[Task]) -> None:
        """Claimed, or handed over to its next step under a new token."""
        for task in tasks:
            self._tasks[task.token] = task

    # Transitions

    def hand(self, task: Task, worker: Worker) -> None:
        """It is about to be sent to this worker."""
        try:
            task.state = _HAND[task.state]
        except KeyError:
            _refuse(Event.HAND, task)
        task.worker = worker

    def revoke(self, task: Task) -> None:
        """A Revoke is about to be sent. Until it is confirmed, the worker may still start the task."""
        try:
            task.state = _REVOKE[task.state]
        except KeyError:
            _refuse(Event.REVOKE, task)

    def start(self, task: Task, now: float) -> None:
        try:
            task.state = _START[task.state]
        except KeyError:
            _refuse(Event.START, task)
        task.started_at = now

    def requeue(self, task: Task) -> bool:
        """It left its worker without having run. Returns whether it waits again; a lost task does not."""
        try:
            task.state = _REQUEUE[task.state]
        except KeyError:
            _refuse(Event.REQUEUE, task)
        task.worker = task.started_at = None
        task.stop_sent_at = task.stop_reason = None  # an interrupt was for this start, not for the next one
        return task.state is TaskState.WAITING

    def die(self, task: Task) -> None:
        """Its worker died after it had started."""
        try:
            task.state = _DIE[task.state]
        except KeyError:
            _refuse(Event.DIE, task)
        task.worker = None

    def end(self, task: Task) -> None:
        """The attempt is over, and is about to be recorded."""
        try:
            task.state = _END[task.state]
        except KeyError:
            _refuse(Event.END, task)

    def commit(self, task: Task) -> None:
        """The end of the attempt is durable."""
        try:
            task.state = _COMMIT[task.state]
        except KeyError:
            _refuse(Event.COMMIT, task)
        del self._tasks[task.token]

    def lose(self, task: Task) -> None:
        """Another supervisor owns the run now."""
        try:
            task.state = _LOSE[task.state]
        except KeyError:
            _refuse(Event.LOSE, task)
        del self._tasks[task.token]

    def abandon(self, task: Task) -> None:
        """The attempt cannot be recorded: leave the run to the reaper, or it was deleted."""
        try:
            task.state = _ABANDON[task.state]
        except KeyError:
            _refuse(Event.ABANDON, task)
        del self._tasks[task.token]

    # Questions

    def tokens(self) -> set[int]:
        return set(self._tasks)

    def runs(self) -> set[str]:
        return {task.run for task in self}

    def has_run(self, run: str) -> bool:
        return any(task.run == run for task in self)

    def has_suspect(self) -> bool:
        """A supervisor holds one suspect at a time."""
        return any(task.suspect for task in self)

    def to_renew(self, now: float) -> list[Task]:
        """The tasks whose leases are renewed now, on the lease clock.

        A step's own transaction that is not READ COMMITTED cannot hand over a row that has changed since it began. So
        such a row is left alone while there is time, and its progress is not written meanwhile.
        """
        return [task for task in self if not task.transaction or task.lease_left(now) < task.lease_seconds / 2]

    def with_progress(self) -> list[Task]:
        """The tasks with progress that is not yet written."""
        return [task for task in self if task.progress is not None and not task.transaction]


def _refuse(event: Event, task: Task) -> NoReturn:
    raise IllegalTransition(
        f"{event} of a task that is {task.state.name}: run {task.run}, token {task.token}"
    ) from None
