"""What runs in a peer's own environment, one module for each: the harness talks to it through __main__.

Everything a process needs to know comes in its environment, as some queues start workers that import the app anew.
"""

import json
import os
from typing import Any, Protocol

DATABASE, REDIS, OPTIONS = "UNDERWAY_PEERS_DATABASE", "UNDERWAY_PEERS_REDIS", "UNDERWAY_PEERS_OPTIONS"


class Queue(Protocol):
    """What the harness wants of a queue. A module with these functions is one."""

    def prepare(self) -> None:
        """Make what the queue needs in its empty database."""

    def enqueue(self, task: str, values: list[int]) -> None:
        """As fast as the queue knows how. `task` is a key of TASKS."""

    def left(self) -> int:
        """The number of tasks that the queue has not finished."""

    def finished_at(self) -> float | None:
        """When the queue recorded the last end, in seconds since the epoch, by its own account; None if it has none."""

    def work(self) -> None:
        """Be a worker, until killed."""


def database() -> str:
    return os.environ[DATABASE]


def redis() -> str:
    return os.environ[REDIS]


def options() -> dict[str, Any]:
    """Those of the setting under which the queue is measured, and `rescue`, the seconds after which it may take a task
    from a worker of which nothing is heard."""
    found: dict[str, Any] = json.loads(os.environ[OPTIONS])
    return found
