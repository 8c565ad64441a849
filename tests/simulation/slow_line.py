"""Supervisors whose network is too slow to transfer a full claim or commit before its deadline.

Bandwidth, payloads and limits are about a thousand times smaller than in reality.
"""

from datetime import timedelta
from unittest.mock import patch

from msgspec.structs import replace

from simulation.app import POLICY, code
from simulation.clockwork import Clockwork
from simulation.world import World
from underway.postgres.reconnecting import STATEMENT_SECONDS
from underway.supervisor.loops import claim, commit, commit_queue
from underway.supervisor.tasks import prefetch

BYTES_PER_SECOND = 1_000
MOST_BYTES = 64_000
CARRIED = int(BYTES_PER_SECOND * STATEMENT_SECONDS)  # the bytes that a statement transfers in its default timeout
SMALL, LARGE, TOO_LARGE = 10, CARRIED // 4, CARRIED * 3 // 2
LEASE = timedelta(seconds=60)


class SlowLine(World):
    """Large inputs behind many small ones, and large results."""

    settling_seconds = 3_000.0

    def __init__(self, loop: Clockwork) -> None:
        super().__init__(loop, 0)
        self.code = code(replace(POLICY, lease=LEASE))
        self.database.bytes_per_second = BYTES_PER_SECOND
        self.database.lossy, self.executions.calm = False, True
        for size, count in ((SMALL, 150), (LARGE, 40), (TOO_LARGE, 6), (SMALL, 150)):
            for job in ("short", "chain"):
                self.database.enqueue(job, bytes(size), count // 2)

    async def play(self) -> None:
        bounds = {claim: "MOST_BYTES", commit: "MOST_BYTES", commit_queue: "MOST_BYTES", prefetch: "PREFETCH_BYTES"}
        patches = [patch.object(module, name, MOST_BYTES) for module, name in bounds.items()]
        for each in patches:
            each.start()
        try:
            await super().play()
        finally:
            for each in patches:
                each.stop()
