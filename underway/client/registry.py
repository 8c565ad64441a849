"""What an app declares, and the database that it is declared for."""

from collections.abc import Callable
from typing import Any, Generic

from typing_extensions import TypeVar

from underway.client.database import Database
from underway.definition import options
from underway.definition.job_definition import JobDefinition
from underway.definition.manifest import Manifest, Queue
from underway.errors import InvalidOption, JobDefinitionError, UnknownJob

J = TypeVar("J", bound=JobDefinition[Any, Any, Any])


class Registry(Generic[J]):
    """The jobs, queues and hooks of one app. The app and each of its jobs hold it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.jobs: dict[str, J] = {}
        self.queues: dict[str, Queue] = {}
        self.worker_end_hooks: list[Callable[[], object]] = []

    def declare_job(self, job: J) -> None:
        """Add a job, in place of the same job with fewer steps. Raises JobDefinitionError if the name is taken."""
        known = self.jobs.get(job.name)
        if known is not None and known.steps != job.steps[: len(known.steps)]:
            raise JobDefinitionError(f"duplicate job name {job.name!r}: each job of an app needs its own")
        self.jobs[job.name] = job

    def declare_queue(self, name: str, dead_letter: str | None) -> None:
        """Add a queue. Raises InvalidOption if it is declared already with another dead-letter label."""
        declared = Queue(
            options.checked_name("queue", name),
            None if dead_letter is None else options.checked_label("dead_letter", dead_letter),
        )
        if self.queues.setdefault(name, declared) != declared:
            raise InvalidOption(f"queue {name!r} is declared twice with different dead_letter labels")

    def manifest(self) -> Manifest:
        """All declarations as pure data. Raises JobDefinitionError if the steps of a job do not fit together."""
        jobs = tuple(job.manifest() for job in self.jobs.values())
        return Manifest(jobs, self.database.url, tuple(self.queues.values()))

    # Declarations may be newer than the database's, or older: a name may be unknown on either side.

    def queue_names(self) -> set[str]:
        """The queues that steps use or that are declared."""
        return {step.spec.placement.queue for job in self.jobs.values() for step in job.steps} | self.queues.keys()

    def labels(self) -> set[str]:
        """The dead-letter labels that the declared queues give."""
        return {queue.dead_letter for queue in self.queues.values() if queue.dead_letter is not None}

    def result_type(self, job: str) -> Any:
        """The type of a job's results; Any if this code does not know the job."""
        declared = self.jobs.get(job)
        return Any if declared is None else declared.result_type

    def input_type(self, job: str, step: str) -> Any:
        """The type of a step's input. Raises UnknownJob."""
        declared = self.jobs.get(job)
        for compiled in () if declared is None else declared.compiled:
            if step in compiled.spec.names:
                return compiled.input_type
        raise UnknownJob(
            f"unknown step: this app has no step {step!r} in job {job!r}, so the type of its input is unknown"
        )
