"""Gives back what this supervisor has claimed of a paused queue and has not begun."""

from collections.abc import Set

from underway.postgres.store import Store
from underway.supervisor.dispatch import Dispatch
from underway.supervisor.endings import Endings


class Pauses:
    """No claim and no hand-over takes a run of a paused queue. What was taken before is given back here.

    (Steps began up to a second after the commit of a pause: hundreds of short ones are claimed ahead.)
    """

    def __init__(self, store: Store, dispatch: Dispatch, endings: Endings) -> None:
        self._store = store
        self._dispatch = dispatch
        self._endings = endings
        self.queues: Set[str] = frozenset()

    async def look(self) -> None:
        """Ask which queues are paused. May raise DatabaseAway."""
        self.queues = await self._store.paused_queues()
        self.pursue()

    def pursue(self) -> None:
        """At each tick: a hand-over may still bring a task, and a worker may return one, after the look."""
        if self.queues:
            for task in self._dispatch.take_unstarted(self.queues):
                self._endings.release(task)
