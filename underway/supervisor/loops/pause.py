"""Releases tasks of paused queues that this supervisor has claimed but not started."""

from collections.abc import Set

from underway.postgres.supervisor_store import Store
from underway.supervisor.tasks.dispatch import Dispatch
from underway.supervisor.tasks.results import ResultHandler


class PausedQueues:
    """Neither a claim nor a hand-over takes a run of a paused queue; tasks taken before are released here.

    (Steps started up to a second after a pause had committed, because hundreds of short tasks are prefetched.)
    """

    def __init__(self, store: Store, dispatch: Dispatch, results: ResultHandler) -> None:
        self._store = store
        self._dispatch = dispatch
        self._results = results
        self.queues: Set[str] = frozenset()

    async def poll(self) -> None:
        """Read which queues are paused. May raise DatabaseUnavailable."""
        self.queues = await self._store.paused_queues()
        self.enforce()

    def enforce(self) -> None:
        """At each tick, release unstarted tasks: after the check, hand-overs and workers may still bring new ones."""
        if self.queues:
            for task in self._dispatch.take_unstarted(self.queues):
                self._results.release(task)
