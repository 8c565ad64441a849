"""What a worker can run, as pure data: the supervisor's whole knowledge of the user's code."""

from collections.abc import Iterator
from datetime import timedelta
from typing import NamedTuple

import msgspec
import orjson

from underway.definition.retry import RetryPolicy


class Lane(NamedTuple):
    """The line in which runs wait for one step of one job in one queue; a claim names the lanes it can serve."""

    queue: str
    job: str
    step: str


class Placement(msgspec.Struct, frozen=True):
    """Written into the run's row at enqueue or hand-over; later changes in code do not reach queued runs.

    The keys are templates here, and filled in when they are written.
    """

    queue: str = "default"
    priority: int = 0
    delay: timedelta = timedelta(0)
    keep: timedelta = timedelta(days=14)
    unique_key: str | None = None
    concurrency_key: str | None = None
    concurrency_limit: int = 1

    @property
    def keyed(self) -> bool:
        return self.unique_key is not None or self.concurrency_key is not None


class Policy(msgspec.Struct, frozen=True):
    """Read when a run is claimed, so a fix in code helps what is already queued. `memory_limit` is in bytes."""

    retry: RetryPolicy = RetryPolicy()
    timeout: timedelta = timedelta(minutes=15)
    memory_limit: int | None = None
    lease: timedelta = timedelta(seconds=60)
    max_crashes: int = 3


class Step(msgspec.Struct, frozen=True):
    name: str
    formerly: tuple[str, ...] = ()
    placement: Placement = Placement()
    policy: Policy = Policy()

    @property
    def names(self) -> tuple[str, ...]:
        """Today's, and those under which runs may still wait."""
        return self.name, *self.formerly


class Job(msgspec.Struct, frozen=True):
    name: str
    steps: tuple[Step, ...]


class Queue(msgspec.Struct, frozen=True):
    """`dead_letter` is the label that runs get which fail for good in this queue."""

    name: str
    dead_letter: str | None = None


class Manifest(msgspec.Struct, frozen=True):
    """Everything a worker tells its supervisor once it has imported the app. `database` is None if none was named."""

    jobs: tuple[Job, ...]
    database: str | None = None
    queues: tuple[Queue, ...] = ()

    def lanes(self) -> Iterator[tuple[Lane, Step]]:
        """Each lane this code serves, also those of steps' former names."""
        for job in self.jobs:
            for step in job.steps:
                for name in step.names:
                    yield Lane(step.placement.queue, job.name, name), step

    def to_json(self) -> bytes:
        return orjson.dumps(msgspec.to_builtins(self))

    @staticmethod
    def from_json(data: bytes) -> "Manifest":
        return msgspec.convert(orjson.loads(data), Manifest)
