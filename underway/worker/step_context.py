"""What `cx` does in a worker: progress, enqueue, tx, log."""

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from underway.client.database import Database
from underway.client.run import Run
from underway.definition.job_definition import JobDefinition
from underway.errors import InsideStep, InvalidOption
from underway.ids import new_id
from underway.keys import template
from underway.payload import codec
from underway.text import encodable, shorten, storable
from underway.wire.messages import Progress, Spawn
from underway.worker import forks
from underway.worker.channel import Outbox
from underway.worker.interrupts import Interrupts
from underway.worker.logging_setup import Logs
from underway.worker.transaction import Transactions

if TYPE_CHECKING:
    import psycopg

PROGRESS_SECONDS = 0.1
_LONGEST_NOTE = 1000
# One statement inserts all of them, and a statement may take ten seconds at most.
_MOST_SPAWNED = 20_000
_MOST_SPAWNED_BYTES = 32 * 1024 * 1024


@dataclass(slots=True)
class Services:
    """What the attempts of one worker share."""

    database: Database
    outbox: Outbox
    interrupts: Interrupts
    transactions: Transactions
    logs: Logs
    progress_seconds: float = PROGRESS_SECONDS  # at most one Progress is sent in this time
    spawning: threading.RLock = field(default_factory=threading.RLock)


class StepContext:
    """Serves the Context of one attempt."""

    __slots__ = ("_forks", "_reported_at", "_services", "_spawned", "_spawned_bytes", "_token", "state")

    def __init__(self, services: Services, token: int) -> None:
        self._services = services
        self._token = token
        self._forks = forks.depth
        self._reported_at = 0.0
        self._spawned: list[Spawn] = []
        self._spawned_bytes = 0
        self.state: Any = None

    def report(self, progress: dict[str, Any]) -> None:
        self._check("cx.progress")
        now = time.monotonic()
        if now - self._reported_at >= self._services.progress_seconds:
            self._reported_at = now
            # One supervisor statement writes the progress of all its tasks. A note that cannot be stored would fail it
            # for the others, and a long note would slow down the renewals that travel with it.
            progress["note"] = encodable(storable(shorten(progress["note"], _LONGEST_NOTE)))
            self._services.outbox.send(Progress(self._token, orjson.dumps(progress)))
            self._services.interrupts.raise_pending()

    def spawn(self, job: JobDefinition[Any, Any, Any], value: Any) -> Run[Any]:
        first = job.compiled[0]
        placement = first.spec.placement
        if placement.unique_key is not None:
            raise InvalidOption(
                f"job {job.name!r} has a unique_key, so only the database can tell whether this run is new: "
                f"enqueue it in the step's own transaction, job.enqueue(value, conn=cx.tx)"
            )
        payload = codec.encode(value, first.input_type)
        run_id = new_id()
        spawn: Spawn = {
            "id": str(run_id),
            "job": job.name,
            "step": first.spec.name,
            "queue": placement.queue,
            "priority": placement.priority,
            "delay": placement.delay.total_seconds(),
            "keep": placement.keep.total_seconds(),
            "concurrency_key": placement.concurrency_key and template.fill(placement.concurrency_key, payload),
            "concurrency_limit": placement.concurrency_limit,
            "input": payload.decode(),
        }
        self._add(spawn, len(payload))
        return Run(self._services.database, run_id, job.result_type)

    def _add(self, spawn: Spawn, size: int) -> None:
        self._check("cx.enqueue")  # before taking the lock, which another thread may have held during the fork
        with self._services.spawning:
            self._check("cx.enqueue")
            size += self._spawned_bytes
            if len(self._spawned) >= _MOST_SPAWNED or size > _MOST_SPAWNED_BYTES:
                raise InvalidOption(
                    f"cx.enqueue takes at most {_MOST_SPAWNED:,} runs and {_MOST_SPAWNED_BYTES >> 20} MiB of input per "
                    f"attempt: enqueue more in the step's own transaction, job.enqueue_many(values, conn=cx.tx)"
                )
            self._spawned_bytes = size
            self._spawned.append(spawn)

    def take_spawned(self) -> list[Spawn]:
        """The runs to enqueue with the hand-over.

        Called when the step has ended. A thread within cx.enqueue either completes before this, or gets InsideStep.
        """
        with self._services.spawning:
            return self._spawned

    def transaction(self) -> "psycopg.Connection[tuple[Any, ...]]":
        self._check("cx.tx")
        connection = self._services.transactions.open(self._token, lambda: self._check("cx.tx"))
        self._services.interrupts.raise_pending()
        return connection

    def logger(self, name: str) -> logging.Logger:
        return self._services.logs.logger(name)

    def _check(self, call: str) -> None:
        """Refuse a call that cannot reach the supervisor. (In a child cx.enqueue returned runs that never existed.)"""
        if self._forks != forks.depth:
            raise InsideStep(
                f"{call} was used in a child process of the step, which cannot talk to the supervisor: return the "
                f"child's result to the step, and use cx in the step's own process"
            )
        if self._services.interrupts.running != self._token:
            raise InsideStep(
                f"{call} belongs to an attempt that has ended: use the cx that the step receives, and join threads "
                f"that use it before the step returns"
            )
