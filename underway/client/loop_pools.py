"""The connection pools of one database on each event loop that uses it."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from underway.client.current_step import survives_step

if TYPE_CHECKING:
    from underway.postgres.pools import AsyncPools


class LoopPools:
    """A pool belongs to the event loop on which it was opened."""

    def __init__(self) -> None:
        self._slots: dict[asyncio.AbstractEventLoop, _Slot] = {}

    async def get(self, url: str | None, conninfo: Callable[[], str]) -> "AsyncPools":
        """The pools of the running event loop, connected to `url`; `conninfo` is called if they are not open yet."""
        self._forget_closed_loops()
        slot = self._slots.setdefault(asyncio.get_running_loop(), _Slot())
        async with slot.opening:
            if slot.pools is not None and slot.url != url:  # changed, as by a test on the same loop
                await slot.pools.close()
                slot.pools = None
            if slot.pools is None:
                slot.url = url
                slot.pools = await _open(conninfo)
            return slot.pools

    def _forget_closed_loops(self) -> None:
        for loop in [loop for loop in self._slots if loop.is_closed()]:
            del self._slots[loop]

    async def close(self) -> None:
        """Close the pools of the running event loop; `get` opens new ones."""
        slot = self._slots.pop(asyncio.get_running_loop(), None)
        if slot is not None and slot.pools is not None:
            await slot.pools.close()


class _Slot:
    def __init__(self) -> None:
        self.opening = asyncio.Lock()
        self.url: str | None = None
        self.pools: AsyncPools | None = None


async def _open(conninfo: Callable[[], str]) -> "AsyncPools":
    from underway.postgres.pools import AsyncPools

    # In a thread: it connects, and may start the embedded Postgres.
    pools = AsyncPools(await asyncio.to_thread(conninfo))
    before = survives_step.set(True)  # otherwise the pools' tasks would end with the step that opens them
    try:
        await pools.open()
    finally:
        survives_step.reset(before)
    return pools
