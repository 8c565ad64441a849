"""When the next commit leaves."""

import asyncio

# While all workers are busy hardly anybody waits for a commit, and one takes half a millisecond of the CPU that steps
# could use, whether it carries one attempt or ten. So it leaves so long after the last one at the earliest. Not later:
# what has ended and is not yet durable would be run again if the supervisor were killed.
GATHER_SECONDS = 0.05
# If something follows from it: the next step of its run, the next run of its key.
GATHER_SECONDS_AWAITED = 0.02
# Many short attempts do not gather longer than this.
ENOUGH = 400


class CommitTimer:
    """At once while a worker is free or after a pause; else with whatever ends in the next moments."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._leave = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._left_at = -GATHER_SECONDS

    def offer(self, waiting: int, *, awaited: bool) -> None:
        """So many attempts wait to be committed; something follows from one that came just now."""
        at = self._left_at + (GATHER_SECONDS_AWAITED if awaited else GATHER_SECONDS)
        if waiting >= ENOUGH or at <= self._loop.time():
            self.hurry()
        elif not self._leave.is_set() and (self._timer is None or at < self._timer.when()):
            self._stop_timer()
            self._timer = self._loop.call_at(at, self.hurry)

    def hurry(self) -> None:
        self._stop_timer()
        self._leave.set()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def departure(self) -> None:
        await self._leave.wait()
        self._leave.clear()
        self._left_at = self._loop.time()
