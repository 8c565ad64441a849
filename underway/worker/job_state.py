"""The states of jobs: what their `state=` factories return, once per worker."""

import sys
from collections.abc import Awaitable, Callable
from typing import Any

from underway.client.job import Job
from underway.errors import Fail, Retry
from underway.worker import forks
from underway.worker.context_variables import Contexts


class StateFailed(Exception):
    """A factory has raised the error that is this one's cause. The attempt fails; the job's next task tries again."""


class JobStates:
    """Each is created for the first task of its job and never closed: a worker is killed."""

    def __init__(self, contexts: Contexts, run_async: Callable[[Awaitable[Any]], Any]) -> None:
        self._contexts = contexts
        self._forks = forks.depth
        self._run_async = run_async
        self._states: dict[str, Any] = {}

    def get(self, job: Job[Any, Any, Any]) -> Any:
        """The state of a job that has a factory."""
        if job.name not in self._states:
            # In its own context: otherwise only the first task would see the context variables that the factory sets.
            self._states[job.name] = self._contexts.fresh().run(self._create, job)
        return self._states[job.name]

    def _create(self, job: Job[Any, Any, Any]) -> Any:
        factory = job.make_state
        assert factory is not None
        try:
            state = factory()
            return self._run_async(state) if isinstance(state, Awaitable) else state
        except (Fail, Retry):
            raise
        except Exception as error:
            name = getattr(factory, "__qualname__", repr(factory))
            raise StateFailed(f"state={name} of job {job.name!r} raised {type(error).__name__}: {error}") from error
        finally:
            if forks.depth != self._forks:
                forks.leave(sys.exc_info()[1])  # otherwise the child would run the step too
