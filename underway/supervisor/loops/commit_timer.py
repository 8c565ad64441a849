"""When the next commit leaves."""

import asyncio

# While all workers are busy, a commit is rarely awaited, and it costs half a millisecond of CPU that steps could use,
# whether it carries one attempt or ten. So it leaves this long after the last one at the earliest. A longer time would
# cost more attempts: those that have ended and are not yet durable run again if the supervisor is killed.
GATHER_SECONDS = 0.05
# If another run can start after it: the next step of a run, or the next run with its key.
GATHER_SECONDS_AWAITED = 0.02
# Many short attempts do not gather longer than this.
ENOUGH = 400


class CommitTimer:
    """At once while a worker is free or after a pause; otherwise with the attempts that end in the next moments."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._leave = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._left_at = -GATHER_SECONDS

    def offer(self, waiting: int, *, awaited: bool) -> None:
        """This many attempts wait to be committed. `awaited`: another run can start after a new one is durable."""
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

    async def wait(self) -> None:
        await self._leave.wait()
        self._leave.clear()
        self._left_at = self._loop.time()
