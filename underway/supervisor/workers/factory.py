"""Starts workers that run the same app under the same limits."""

import itertools
import random

from underway.supervisor.workers.boot import working_folder
from underway.supervisor.workers.descendants import Descendants
from underway.supervisor.workers.launch import LaunchSpec
from underway.supervisor.workers.process import WorkerListener, WorkerProcess
from underway.supervisor.workers.recycle import RecycleLimits, WorkerUsage


class WorkerFactory:
    """`descendants` kills the workers that it starts, and all that they start."""

    def __init__(
        self,
        app: str,
        supervisor_id: str,
        descendants: Descendants,
        recycle_limits: RecycleLimits,
        rng: random.Random,
        *,
        pool_size: int,
        output_limit: int,
    ) -> None:
        self._app = app
        self._supervisor_id = supervisor_id
        self._descendants = descendants
        self._recycle_limits = recycle_limits
        self._rng = rng
        self._pool_size = pool_size
        self._output_limit = output_limit
        self._folder = working_folder()
        self._serial = itertools.count(1)

    def start(self, slot: int, generation: int, listener: WorkerListener) -> WorkerProcess:
        """Raises OSError if the system cannot start another process."""
        serial = next(self._serial)
        spec = LaunchSpec(
            app=self._app,
            slot=slot,
            # The mark ends in a character that is not a digit: worker 1 must not be taken for worker 10.
            mark=f"{self._supervisor_id}/{serial};",
            folder=self._folder,
            temporary=self._descendants.temporary.for_worker(serial),
        )
        usage = WorkerUsage(self._recycle_limits, self._rng)
        return WorkerProcess(
            spec, generation, usage, listener, self._descendants,
            pool_size=self._pool_size, output_limit=self._output_limit,
        )  # fmt: skip
