"""When the next commit leaves."""

import asyncio

# While all workers are busy nobody waits for a commit, and one takes half a millisecond of the CPU that they could
# use, whether for one attempt or for five.
GATHER_SECONDS = 0.05
# Many short attempts do not gather longer than this.
ENOUGH = 200


class Pace:
    """At once while a worker is free or after a pause; else with whatever ends within 50 ms of the last one."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._leave = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._left_at = -GATHER_SECONDS

    def offer(self, waiting: int) -> None:
        """So many attempts wait to be committed."""
        if waiting >= ENOUGH:
            self.hurry()
        elif self._timer is None and not self._leave.is_set():
            self._timer = self._loop.call_at(self._left_at + GATHER_SECONDS, self.hurry)

    def hurry(self) -> None:
        self._leave.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def departure(self) -> None:
        await self._leave.wait()
        self._leave.clear()
        self._left_at = self._loop.time()
