"""The ended attempts that wait for their commit."""

import asyncio

from underway.supervisor.loops.commit_timer import CommitTimer
from underway.supervisor.tasks.dispatch import Dispatch
from underway.supervisor.tasks.ended import Ended

# One statement carries no more than this, except for a single larger payload. While this much waits (the database is
# slow or unavailable), nothing is claimed and no worker gets another task: only what already runs can still be added.
MOST_BYTES = 32 * 1024 * 1024


class CommitQueue:
    """Tells the dispatch how many tasks may come back from here, and when the waiting results have become too large."""

    def __init__(self, dispatch: Dispatch, timer: CommitTimer) -> None:
        self._dispatch = dispatch
        self._timer = timer
        self._waiting: list[Ended] = []
        self._new: list[Ended] = []
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, ended: Ended) -> None:
        self._waiting.append(ended)
        self._track_bytes(ended.size)
        if ended.may_stay:
            self._dispatch.expect(1)
        self._new.append(ended)
        if len(self._new) == 1:  # once for all messages that are read from a worker together
            asyncio.get_running_loop().call_soon(self._offer)

    def put_back(self, group: list[Ended]) -> None:
        """Repeat these, before all others."""
        self._waiting[:0] = group
        self._track_bytes(sum(ended.size for ended in group))
        self._dispatch.expect(sum(ended.may_stay for ended in group))
        self.offer_again()

    def offer_again(self) -> None:
        self._timer.offer(len(self._waiting), awaited=True)

    def take(self, most: int, most_bytes: int) -> tuple[list[Ended], int]:
        """Take a batch: at most this many, with at most this many bytes, but at least one. Returns its bytes, too."""
        size = count = 0
        for ended in self._waiting[:most]:
            more = size + ended.size
            if more > most_bytes and count:
                break
            size = more
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        self._track_bytes(-size)
        self._dispatch.expect(-sum([ended.may_stay for ended in batch]))
        return batch, size

    def _offer(self) -> None:
        """Decide when a commit should leave with the new results."""
        new, self._new = self._new, []
        self._timer.offer(len(self._waiting), awaited=any(ended.is_awaited for ended in new))

    def _track_bytes(self, more: int) -> None:
        self._bytes += more
        self._dispatch.backpressured = self._bytes >= MOST_BYTES
