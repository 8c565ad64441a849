"""Stops tasks whose runs were cancelled, and closes those runs."""

import time
from logging import getLogger

import psycopg

from underway.postgres.supervisor_store import Store
from underway.postgres.transitions import Attempt, FinishRun
from underway.supervisor.loops.loop import ErrorLog
from underway.supervisor.tasks.dispatch import Dispatch
from underway.supervisor.tasks.held import HeldTasks
from underway.supervisor.tasks.results import ResultHandler
from underway.supervisor.tasks.task import Task
from underway.supervisor.tasks.verdict import Observation
from underway.supervisor.workers.limits import about_task, interrupt

log = getLogger("underway.supervisor")


class Cancellation:
    """A cancelled task is interrupted, and killed if it has not ended a few seconds later.

    The fence is shut from the commit of the cancel on, so there is no hurry. When none of the run's code runs any more,
    the run is closed and its key is released.
    """

    def __init__(self, store: Store, dispatch: Dispatch, results: ResultHandler, held: HeldTasks) -> None:
        self._store = store
        self._dispatch = dispatch
        self._results = results
        self._held = held
        self._stopping: list[Task] = []
        self._errors = ErrorLog("closing a cancelled run")

    async def poll(self) -> bool:
        """Read the requests. Returns False if one is for a task that is still to arrive here: then poll again soon. May
        raise DatabaseUnavailable.
        """
        found_all = True
        for run, token, attempts, crashes in await self._store.cancel_requests():
            task = self._held.get(token)
            if task is not None:
                if not task.cancelled:
                    task.cancelled = True
                    self._stopping.append(task)
            elif self._held.has_run(run):
                found_all = False  # it is being handed over to its next step, which stays here under a new token
            else:
                await self._close(FinishRun(run, token, "cancelled", None, attempts, crashes,
                                            Attempt("cancelled", "cancelled")))  # fmt: skip
        self.enforce(time.monotonic())
        return found_all

    async def _close(self, closing: FinishRun) -> None:
        """The answer of the claim or hand-over that took this run was lost: no worker has it, and none will get it."""
        try:
            await self._store.finish([closing], [])
        except psycopg.Error as error:
            self._errors.report(error)

    def enforce(self, now: float) -> None:
        """At each tick, because a task may be on its way to or from a worker. Limits does the kill."""
        self._stopping = [task for task in self._stopping if task.token in self._held and not task.ended]
        for task in self._stopping:
            if task.worker is not None and task.started_at is None:
                self._dispatch.add_first(self._dispatch.take_back(task.worker))
            if task.worker is None and task.started_at is not None:
                continue  # its worker has died: it ends as cancelled when the death is judged, in a moment
            if task.worker is None:
                self._dispatch.drop(task)
                self._results.record_failure(task, Observation.CANCELLED, "cancelled before it began")
            elif task.started_at is not None and task.stop_sent_at is None:
                interrupt(task.worker, task, "cancel", now)
                log.warning("interrupted: the run was cancelled", extra={"about": about_task(task.worker, task)})
