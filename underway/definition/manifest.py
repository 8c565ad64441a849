"""The jobs, steps and queues of an app as pure data: all that a supervisor knows of the user's code."""

from collections.abc import Iterator
from datetime import timedelta
from typing import NamedTuple

import msgspec
import orjson

from underway.definition.retry import RetryPolicy


class Lane(NamedTuple):
    """The line of runs that wait for one step of one job in one queue. A claim names the lanes that it can serve."""

    queue: str
    job: str
    step: str


class Placement(msgspec.Struct, frozen=True):
    """The options that are written into a run's row at enqueue or hand-over. Later changes in code do not affect it.

    The keys are templates here; they are filled in when the row is written.
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
    """The options that are read when a run is claimed. Changes in code affect runs that are queued already.

    `memory_limit` is in bytes.
    """

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
        """The current name, and the former names under which runs may still wait."""
        return self.name, *self.formerly


class Job(msgspec.Struct, frozen=True):
    name: str
    steps: tuple[Step, ...]


class Queue(msgspec.Struct, frozen=True):
    """`dead_letter` is the label of runs that fail for good in this queue."""

    name: str
    dead_letter: str | None = None


class Manifest(msgspec.Struct, frozen=True):
    """What a worker tells its supervisor after it has imported the app. `database` is None if it was not named."""

    jobs: tuple[Job, ...]
    database: str | None = None
    queues: tuple[Queue, ...] = ()

    def lanes(self) -> Iterator[tuple[Lane, Step]]:
        """Each lane that this code serves, including those of former names of steps."""
        for job in self.jobs:
            for step in job.steps:
                for name in step.names:
                    yield Lane(step.placement.queue, job.name, name), step

    def to_json(self) -> bytes:
        return orjson.dumps(msgspec.to_builtins(self))

    @staticmethod
    def from_json(data: bytes) -> "Manifest":
        return msgspec.convert(orjson.loads(data), Manifest)
