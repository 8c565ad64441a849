"""What runs in a peer's own environment, one module per peer. The harness talks to it through __main__.

All parameters are environment variables, because some queues start workers that import the app again.
"""

import json
import os
from typing import Any, Protocol

DATABASE, REDIS, OPTIONS = "UNDERWAY_PEERS_DATABASE", "UNDERWAY_PEERS_REDIS", "UNDERWAY_PEERS_OPTIONS"


class Queue(Protocol):
    """What the harness needs of a queue. A module with these functions implements it."""

    def prepare(self) -> None:
        """Create what the queue needs in an empty database."""

    def enqueue(self, task: str, values: list[int]) -> None:
        """Enqueue in the fastest way that the queue offers. `task` is a key of TASKS."""

    def unfinished(self) -> int:
        """The number of unfinished tasks in the queue."""

    def finished_at(self) -> float | None:
        """When the queue recorded the last end, in seconds since the epoch; None if it records no times."""

    def run_worker(self) -> None:
        """Run a worker until it is killed."""


def database() -> str:
    return os.environ[DATABASE]


def redis() -> str:
    return os.environ[REDIS]


def options() -> dict[str, Any]:
    """The options of the setting that is measured, and `rescue`: the seconds after which the queue may retry the tasks
    of an unresponsive worker."""
    found: dict[str, Any] = json.loads(os.environ[OPTIONS])
    return found
