"""Stops what somebody has cancelled, and sees to it that those runs are closed."""

import time
from logging import getLogger

import psycopg

from underway.postgres.supervisor_store import Store
from underway.postgres.transitions import Attempt, FinishRun
from underway.supervisor.loops.errors import LoopErrors
from underway.supervisor.tasks.dispatch import Dispatch
from underway.supervisor.tasks.results import ResultHandler
from underway.supervisor.tasks.task import Task
from underway.supervisor.tasks.verdict import Observation
from underway.supervisor.workers.limits import about_task, interrupt

log = getLogger("underway.supervisor")


class Cancels:
    """A cancelled task is interrupted, and killed when it has not ended a few seconds later.

    From the moment somebody has cancelled it the fence is shut, so nothing hurries for the run's sake. It is closed,
    and its key is free, when nothing of it runs any more.
    """

    def __init__(self, store: Store, dispatch: Dispatch, endings: ResultHandler, held: dict[int, Task]) -> None:
        self._store = store
        self._dispatch = dispatch
        self._endings = endings
        self._held = held
        self._stopping: list[Task] = []
        self._faults = LoopErrors("closing a cancelled run")

    async def look(self) -> bool:
        """Ask for requests; False if there is one for a task that we are about to hear of: ask again. May raise
        DatabaseAway.
        """
        found_all = True
        for run, token, attempts, crashes in await self._store.cancel_requests():
            task = self._held.get(token)
            if task is not None:
                if not task.cancelled:
                    task.cancelled = True
                    self._stopping.append(task)
            elif any(other.run == run for other in self._held.values()):
                found_all = False  # it is being handed over to its next step, which stays here under a new token
            else:
                # A claim or hand-over whose answer was lost: no worker has it, and none will.
                closing = FinishRun(run, token, "cancelled", None, attempts, crashes, Attempt("cancelled", "cancelled"))
                try:
                    await self._store.finish([closing], [])
                except psycopg.Error as error:
                    self._faults.note(error)
        self.enforce(time.monotonic())
        return found_all

    def enforce(self, now: float) -> None:
        """In every tick, since a task may be on its way to or from a worker. The kill is up to the limits."""
        self._stopping = [task for task in self._stopping if task.token in self._held and not task.ended]
        for task in self._stopping:
            if task.worker is not None and task.started_at is None:
                self._dispatch.add_first(self._dispatch.take_back(task.worker))
            if task.worker is None and task.started_at is not None:
                continue  # its worker has died: when that has been judged, in a moment, it ends as cancelled
            if task.worker is None:
                self._dispatch.drop(task)
                self._endings.settle(task, Observation.CANCELLED, "cancelled before it began")
            elif task.started_at is not None and task.stop_sent_at is None:
                interrupt(task.worker, task, "cancel", now)
                log.warning("interrupted: somebody has cancelled it", extra={"about": about_task(task.worker, task)})
