"""What `state=` factories have made for this worker."""

import sys
from collections.abc import Awaitable, Callable
from typing import Any

from underway.client.job import Job
from underway.errors import Fail, Retry
from underway.worker import forks
from underway.worker.context_variables import Contexts


class StateFailed(Exception):
    """The factory's error is its cause; the attempt has failed, and the next task of the job tries again."""


class States:
    """Made at the first task of each job, kept as long as the worker lives: it is killed, so nothing is closed."""

    def __init__(self, contexts: Contexts, run_async: Callable[[Awaitable[Any]], Any]) -> None:
        self._contexts = contexts
        self._forks = forks.depth
        self._run_async = run_async
        self._made: dict[str, Any] = {}

    def of(self, job: Job[Any, Any, Any]) -> Any:
        """The state of a job that has a factory."""
        if job.name not in self._made:
            # In its own context: otherwise only the first task would see the context variables that the factory sets.
            self._made[job.name] = self._contexts.fresh().run(self._make, job)
        return self._made[job.name]

    def _make(self, job: Job[Any, Any, Any]) -> Any:
        factory = job.make_state
        assert factory is not None
        try:
            made = factory()
            return self._run_async(made) if isinstance(made, Awaitable) else made
        except (Fail, Retry):
            raise
        except Exception as error:
            name = getattr(factory, "__qualname__", repr(factory))
            raise StateFailed(f"state={name} of job {job.name!r} raised {type(error).__name__}: {error}") from error
        finally:
            if forks.depth != self._forks:
                forks.leave(sys.exc_info()[1])  # otherwise the child would run the step too
