"""What a user declares: a job, its steps, and the calls that enqueue, cancel and schedule its runs."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Generic, Never, overload

from typing_extensions import TypeVar, Unpack

from underway.client import operations, schedules
from underway.client.context import Context, State
from underway.client.registry import Registry
from underway.client.run import Run
from underway.client.schedules import CatchUp, Schedule
from underway.definition import options
from underway.definition.job_definition import In, JobDefinition, Next, Result, checked_factory
from underway.definition.options import RunOptions, StepOptions
from underway.definition.step import DeclaredStep, Returned, declare_step

if TYPE_CHECKING:
    import psycopg

N = TypeVar("N")
R = TypeVar("R")


class StepAfterTheEnd:
    """A job with a step after one that always ends the run (it returns Done), as a type checker sees it.

    It can neither be enqueued nor be given another step. At run time, the check of the job's steps refuses it.
    """


class NewJob(Generic[State]):
    """A job without steps; give it the first one with `.step(...)`."""

    def __init__(
        self, registry: "Registry[Job[Any, Any, Any]]", name: str, make_state: Callable[[], Any] | None = None
    ) -> None:
        self.name = options.checked_name("job", name)
        self._registry = registry
        self._make_state = checked_factory(name, make_state)

    @overload
    def step(
        self, function: Callable[[Context[State], In], Returned[N, R]], **given: Unpack[StepOptions]
    ) -> "Job[In, N, R, State]": ...
    @overload
    def step(
        self, function: Callable[[Context[State]], Returned[N, R]], **given: Unpack[StepOptions]
    ) -> "Job[None, N, R, State]": ...
    def step(self, function: Callable[..., Any], **given: Unpack[StepOptions]) -> "Job[Any, Any, Any, State]":
        """The first step. Its input is what `enqueue` takes. Options as described in StepOptions."""
        return Job(self._registry, self.name, (declare_step(function, **given),), self._make_state)


class Job(JobDefinition[In, Next, Result], Generic[In, Next, Result, State]):
    """A named sequence of typed steps. `In` is what `enqueue` takes, `Result` what `Run.result()` returns.

    `Next` is what the last step hands on; it is Never for a complete job. `State` is the type of `cx.state`.
    """

    def __init__(
        self,
        registry: "Registry[Job[Any, Any, Any]]",
        name: str,
        steps: tuple[DeclaredStep, ...],
        make_state: Callable[[], Any] | None = None,
    ) -> None:
        super().__init__(name, steps, make_state)
        self.registry = registry
        self.database = registry.database
        registry.declare_job(self)

    # First, or a step that takes anything would seem to fit what a Done hands on: Never.
    @overload
    def step(
        self: "Job[In, Never, Result, State]", function: Callable[..., Any], **given: Unpack[StepOptions]
    ) -> StepAfterTheEnd: ...
    @overload
    def step(
        self, function: Callable[[Context[State], Next], Returned[N, R]], **given: Unpack[StepOptions]
    ) -> "Job[In, N, Result | R, State]": ...
    @overload
    def step(
        self: "Job[In, None, Result, State]",
        function: Callable[[Context[State]], Returned[N, R]],
        **given: Unpack[StepOptions],
    ) -> "Job[In, N, Result | R, State]": ...
    def step(self, function: Callable[..., Any], **given: Unpack[StepOptions]) -> Any:
        """This job with one more step. Its input is the hand-over of the step before it."""
        return Job(self.registry, self.name, (*self.steps, declare_step(function, **given)), self.make_state)

    @overload
    def enqueue(
        self: "Job[In, Never, Result]",
        value: In,
        *,
        conn: "psycopg.Connection[Any] | None" = None,
        **given: Unpack[RunOptions],
    ) -> Run[Result]: ...
    @overload
    def enqueue(
        self: "Job[None, Never, Result]",
        *,
        conn: "psycopg.Connection[Any] | None" = None,
        **given: Unpack[RunOptions],
    ) -> Run[Result]: ...
    def enqueue(
        self, value: Any = None, *, conn: "psycopg.Connection[Any] | None" = None, **given: Unpack[RunOptions]
    ) -> Run[Any]:
        """Enqueue a run. With `conn=`, it is committed or rolled back with everything else in your transaction.

        `priority`, `delay`, `keep`, `unique_key` and `concurrency_key` replace the options of the first step for this
        run. If a live run of this job has the unique key, it is returned, with `created` False. If that run is not
        committed yet, the call waits until it is committed or rolled back.

        Raises PayloadError if JSON cannot carry the value or the value lacks a field of a key, InvalidOption, and
        JobDefinitionError if the job's steps do not fit together.
        """
        ((run_id, created),) = self.database.run(operations.enqueue(self, value, conn, given), conn)
        return Run(self.database, run_id, self.result_type, created=created)

    def enqueue_many(
        self: "Job[In, Never, Result]",
        values: Iterable[In],
        *,
        conn: "psycopg.Connection[Any] | None" = None,
        **given: Unpack[RunOptions],
    ) -> list[Run[Result]]:
        """Enqueue a run for each value, all of them or none, by COPY. The runs are in the order of the values.

        Options as for `enqueue`, the same for all. Values with the same unique key share one run.
        """
        query = operations.enqueue_many(self, values, conn, given, in_one=conn is None)
        enqueued = self.database.run(query, conn)
        return [Run(self.database, run_id, self.result_type, created=created) for run_id, created in enqueued]

    def cancel(
        self,
        *,
        unique_key: str | None = None,
        concurrency_key: str | None = None,
        conn: "psycopg.Connection[Any] | None" = None,
    ) -> int:
        """Cancel the live run with this unique key, or the live runs with this concurrency key. Returns their number.

        As Run.cancel does, in one transaction. A run has the concurrency key of its current step. Raises InvalidOption
        if the steps of the job do not all have the same `concurrency_key=`, because a key would not find all runs.
        """
        return self.database.run(operations.cancel_key(self, unique_key, concurrency_key), conn)

    def cancel_all(self, *, conn: "psycopg.Connection[Any] | None" = None) -> int:
        """Cancel all live runs of this job, as Run.cancel does, in one transaction. Returns their number."""
        return self.database.run(operations.cancel_all(self, conn), conn)

    @overload
    def schedule(
        self: "Job[In, Never, Result]",
        cron: str,
        value: In,
        *,
        name: str = "default",
        catch_up: CatchUp = "last",
        overlap: bool = True,
        conn: "psycopg.Connection[Any] | None" = None,
    ) -> Schedule: ...
    @overload
    def schedule(
        self: "Job[None, Never, Result]",
        cron: str,
        *,
        name: str = "default",
        catch_up: CatchUp = "last",
        overlap: bool = True,
        conn: "psycopg.Connection[Any] | None" = None,
    ) -> Schedule: ...
    def schedule(
        self,
        cron: str,
        value: Any = None,
        *,
        name: str = "default",
        catch_up: CatchUp = "last",
        overlap: bool = True,
        conn: "psycopg.Connection[Any] | None" = None,
    ) -> Schedule:
        """Enqueue a run with this value at every slot of a cron line, such as "@daily[America/Los_Angeles]".

        A line has five fields, or is @hourly and the like; without a zone it is in UTC. A job may have several
        schedules with different names. A schedule with a known name is changed; it keeps its next slot if line and zone
        are the same. `catch_up` is for slots that came due while no supervisor served the job: "last" runs the latest
        of them, "all" runs each, "none" runs the latest if it has been due for less than a minute. With overlap=False,
        a slot is skipped while a run of this schedule is live.

        Raises InvalidOption for an invalid line or zone and for a line that never matches, PayloadError for the value.
        """
        query = schedules.schedule(self, cron, value, conn, name=name, catch_up=catch_up, overlap=overlap)
        return self.database.run(query, conn)

    def unschedule(self, name: str = "default", *, conn: "psycopg.Connection[Any] | None" = None) -> bool:
        """Remove a schedule. Returns whether it existed. The runs that it has enqueued stay."""
        return self.database.run(schedules.unschedule(self, name, conn), conn)
