"""What a user declares: a job, its steps, and the check that they fit together."""

import functools
import inspect
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    Never,
    TypeAlias,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

from typing_extensions import TypeVar, Unpack

from underway.definition import manifest, options
from underway.definition.context import Context, State
from underway.definition.options import RunOptions, StepOptions
from underway.definition.transition import To
from underway.errors import InvalidOption, JobDefinitionError, PayloadError
from underway.keys import fields
from underway.payload import codec
from underway.payload.type_names import type_name, type_names

if TYPE_CHECKING:
    import psycopg

    from underway.app import Underway
    from underway.client.runs import Run
    from underway.client.schedules import CatchUp, Schedule

In = TypeVar("In")
Next = TypeVar("Next")
Result = TypeVar("Result")
N = TypeVar("N")
R = TypeVar("R")

# What a step returns: an `async def` gives the hand-over when it is awaited.
Returned: TypeAlias = To[N, R] | Awaitable[To[N, R]]


@dataclass(frozen=True, slots=True)
class CompiledStep:
    """A step whose types are known. `next_type` is Never for a step that always ends the run."""

    function: Callable[..., Returned[Any, Any]]
    spec: manifest.Step
    takes_input: bool
    input_type: Any
    next_type: Any
    result_type: Any


class StepAfterTheEnd:
    """What a type checker sees in place of a job with a step behind one that always ends the run (it returns Done).

    It can neither be enqueued nor be given another step. When the program runs, the job's check says the same.
    """


class NewJob(Generic[State]):
    """A job without steps; give it the first one with `.step(...)`."""

    def __init__(self, app: "Underway", name: str, state: Callable[[], Any] | None = None) -> None:
        self._app = app
        self._state = None if state is None else _checked_factory(name, state)
        self.name = options.checked_name("job", name)

    @overload
    def step(
        self, function: Callable[[Context[State], In], Returned[N, R]], **given: Unpack[StepOptions]
    ) -> "Job[In, N, R, State]": ...
    @overload
    def step(
        self, function: Callable[[Context[State]], Returned[N, R]], **given: Unpack[StepOptions]
    ) -> "Job[None, N, R, State]": ...
    def step(self, function: Callable[..., Any], **given: Unpack[StepOptions]) -> "Job[Any, Any, Any, State]":
        """The first step: its input is what `enqueue` takes. Options as described in StepOptions."""
        return Job(self._app, self.name, ((function, _spec(function, given)),), self._state)


class Job(Generic[In, Next, Result, State]):
    """A named sequence of typed steps. `In` is what `enqueue` takes, `Result` what `Run.result()` returns.

    `Next` is what the last step hands on; it is Never for a job that is complete. `State` is what `cx.state` is.
    """

    def __init__(
        self,
        app: "Underway",
        name: str,
        steps: tuple[tuple[Callable[..., Any], manifest.Step], ...],
        state: Callable[[], Any] | None = None,
    ) -> None:
        self._app = app
        self._steps = steps
        self.name = name
        self.make_state = state
        app._declare(self)

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
        """This job with one more step, whose input is what the step before it hands over."""
        return Job(self._app, self.name, (*self._steps, (function, _spec(function, given))), self.make_state)

    @overload
    def enqueue(
        self: "Job[In, Never, Result]",
        value: In,
        *,
        conn: "psycopg.Connection[Any] | None" = None,
        **given: Unpack[RunOptions],
    ) -> "Run[Result]": ...
    @overload
    def enqueue(
        self: "Job[None, Never, Result]",
        *,
        conn: "psycopg.Connection[Any] | None" = None,
        **given: Unpack[RunOptions],
    ) -> "Run[Result]": ...
    def enqueue(
        self, value: Any = None, *, conn: "psycopg.Connection[Any] | None" = None, **given: Unpack[RunOptions]
    ) -> "Run[Any]":
        """Enqueue a run. With `conn=` in your transaction: committed or rolled back with everything else in it.

        `priority`, `delay`, `keep`, `unique_key` and `concurrency_key` take the place of the first step's for this run.
        If a live run of this job has the unique key, it is returned, with `created` False; if it is not committed
        yet, this waits until it is, or is rolled back.

        Raises PayloadError if the value cannot travel or lacks a field of a key, InvalidOption, JobDefinitionError if
        the job's steps do not fit together.
        """
        return self._app._enqueue(self, value, conn, given)

    def enqueue_many(
        self: "Job[In, Never, Result]",
        values: Iterable[In],
        *,
        conn: "psycopg.Connection[Any] | None" = None,
        **given: Unpack[RunOptions],
    ) -> "list[Run[Result]]":
        """Enqueue a run for each value, all or none of them, by COPY. The runs are in the order of the values.

        Options as for `enqueue`, the same for all. Values with the same unique key share one run.
        """
        return self._app._enqueue_many(self, values, conn, given)

    def cancel(
        self,
        *,
        unique_key: str | None = None,
        concurrency_key: str | None = None,
        conn: "psycopg.Connection[Any] | None" = None,
    ) -> int:
        """Cancel the live run with this unique key, or the live runs with this concurrency key; returns how many.

        As Run.cancel does, all of it in one transaction. A run has the concurrency key of its current step. Raises
        InvalidOption if the steps of the job do not all have the same `concurrency_key=`, because a key would not find
        all of the runs.
        """
        return self._app._cancel_key(self, unique_key, concurrency_key, conn)

    def cancel_all(self, *, conn: "psycopg.Connection[Any] | None" = None) -> int:
        """Cancel all live runs of this job, as Run.cancel does; returns how many. All of it is one transaction."""
        return self._app._cancel_all(self, conn)

    @overload
    def schedule(
        self: "Job[In, Never, Result]",
        cron: str,
        value: In,
        *,
        name: str = "default",
        catch_up: "CatchUp" = "last",
        overlap: bool = True,
        conn: "psycopg.Connection[Any] | None" = None,
    ) -> "Schedule": ...
    @overload
    def schedule(
        self: "Job[None, Never, Result]",
        cron: str,
        *,
        name: str = "default",
        catch_up: "CatchUp" = "last",
        overlap: bool = True,
        conn: "psycopg.Connection[Any] | None" = None,
    ) -> "Schedule": ...
    def schedule(
        self,
        cron: str,
        value: Any = None,
        *,
        name: str = "default",
        catch_up: "CatchUp" = "last",
        overlap: bool = True,
        conn: "psycopg.Connection[Any] | None" = None,
    ) -> "Schedule":
        """Enqueue a run with this value at every slot of a cron line, as "@daily[America/Los_Angeles]"; UTC if no zone.

        Five fields, or @hourly and the like. A job may have several schedules, told apart by their names; one of the
        same name is changed, and goes on waiting for its slot if line and zone are the same. Slots that came due while
        nobody could serve them: "last" runs the latest of them, "all" every one, "none" none (that has been due for a
        minute). With overlap=False a slot is skipped while a run of this schedule is live.

        Raises InvalidOption for a line or zone that is none, or that never matches; PayloadError for the value.
        """
        return self._app._schedule(self, cron, value, name, catch_up, overlap, conn)

    def unschedule(self, name: str = "default", *, conn: "psycopg.Connection[Any] | None" = None) -> bool:
        """Remove a schedule; whether there was one. Runs that it has enqueued stay."""
        return self._app._unschedule(self, name, conn)

    @functools.cached_property
    def compiled(self) -> tuple[CompiledStep, ...]:
        """The steps with their types resolved. Raises JobDefinitionError if they do not fit together."""
        steps = tuple(_compile(self.name, function, spec) for function, spec in self._steps)
        _check_chain(self.name, steps)
        return steps

    @functools.cached_property
    def result_type(self) -> Any:
        """The union of what the steps may end with."""
        kinds = [step.result_type for step in self.compiled if step.result_type is not Never]
        return Union[tuple(kinds)] if kinds else None  # noqa: UP007

    def manifest(self) -> manifest.Job:
        """The job as pure data. Raises JobDefinitionError if its steps do not fit together."""
        return manifest.Job(self.name, tuple(step.spec for step in self.compiled))

    def __repr__(self) -> str:
        return f"<Job {self.name}: {' -> '.join(spec.name for _, spec in self._steps)}>"


def _checked_factory(job: str, state: Callable[[], Any]) -> Callable[[], Any]:
    if not callable(state):
        raise InvalidOption(f"job {job!r}: state must be a function that returns the state of a worker, not {state!r}")
    if inspect.isgeneratorfunction(state) or inspect.isasyncgenfunction(state):
        raise InvalidOption(f"job {job!r}: state must return the state, not yield it: no code after a yield would run")
    return state


def _spec(function: Callable[..., Any], given: StepOptions) -> manifest.Step:
    if not callable(function):
        raise JobDefinitionError(f"a step must be a function, not {function!r}")
    named = function.func if isinstance(function, functools.partial) else function
    default = getattr(named, "__name__", type(named).__name__)
    return options.step(default, **given)


def _compile(job: str, function: Callable[..., Any], spec: manifest.Step) -> CompiledStep:
    where = f"job {job!r}, step {spec.name!r}"
    plain = function if inspect.isroutine(function) else type(function).__call__
    if isinstance(function, functools.partial):
        plain = function.func
    if inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain):
        raise JobDefinitionError(f"{where}: a step must be a function or an async function, not a generator")
    try:
        hints = get_type_hints(plain, include_extras=True)
    except NameError as error:
        raise JobDefinitionError(
            f"{where}: cannot resolve its annotations: {error}; each type must be a global of the module at runtime, "
            f"not local to a function and not imported only under TYPE_CHECKING"
        ) from error
    try:
        signature = inspect.signature(function)
    except ValueError as error:  # some built-in ones have none
        raise JobDefinitionError(f"{where}: a step must take (cx) or (cx, input), but {error}") from error
    # The second is the input even if it has a default: so it is to a type checker.
    parameters, others = _parameters(signature)
    if not parameters or others or _travels(hints.get(parameters[0].name, object)):
        raise JobDefinitionError(f"{where}: a step must take (cx) or (cx, input), not {signature}")
    input_type = None
    if len(parameters) == 2:
        if parameters[1].name not in hints:
            raise JobDefinitionError(
                f"{where}: parameter {parameters[1].name!r} must be annotated with the input type of the step"
            )
        input_type = hints[parameters[1].name]
    if "return" not in hints:
        raise JobDefinitionError(
            f"{where}: its return type must be annotated: To[NextInput], or Done for the last step"
        )
    next_type, result_type = _handed_over(where, hints["return"])
    for kind in (input_type, next_type, result_type):
        if kind is not Never:
            _check_travels(where, kind)
    _check_keys(where, spec.placement, input_type)
    return CompiledStep(function, spec, len(parameters) == 2, input_type, next_type, result_type)


def _parameters(signature: inspect.Signature) -> tuple[list[inspect.Parameter], list[inspect.Parameter]]:
    """The first two that are positional, and all others that must be given."""
    parameters = list(signature.parameters.values())
    ours = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)][:2]
    given = [
        one for one in parameters if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    return ours, [one for one in given if one not in ours]


def _handed_over(where: str, annotation: Any) -> tuple[Any, Any]:
    """What a return annotation says: (next input or Never, result or Never)."""
    if get_origin(annotation) in (Awaitable, Coroutine):
        annotation = get_args(annotation)[-1]
    branches = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    nexts, results = [], []
    for branch in branches:
        if branch is To or get_origin(branch) is not To:
            raise JobDefinitionError(
                f"{where}: it returns {type_name(annotation)}; a step must return To[NextInput], "
                f"To[NextInput, Result] or Done[Result]"
            )
        handed, result, *_ = (*get_args(branch), None)
        nexts.append(handed)
        # A bare Done leaves its type variable open; its default is None.
        results.append(None if isinstance(result, TypeVar) or result is type(None) else result)
    return _union(nexts), _union(results)


def _union(kinds: list[Any]) -> Any:
    real = [
        kind for kind in kinds if kind is not Never and str(kind) not in ("typing.Never", "typing_extensions.Never")
    ]
    return Union[tuple(real)] if real else Never  # noqa: UP007


def _check_travels(where: str, kind: Any) -> None:
    try:
        codec.check_type(kind)
    except PayloadError as error:
        raise JobDefinitionError(f"{where}: {error}") from error


def _check_keys(where: str, placement: manifest.Placement, taken: Any) -> None:
    templates = {"unique_key": placement.unique_key, "concurrency_key": placement.concurrency_key}
    for option, template in templates.items():
        if template is not None and (reason := fields.mismatch(template, taken)):
            raise JobDefinitionError(f"{where}: {option} {template!r} {reason}")


def _travels(kind: Any) -> bool:
    """Whether it is an input's type, which a Context's is not."""
    try:
        codec.check_type(kind)
    except PayloadError:
        return False
    return kind not in (Any, object)


def _check_chain(job: str, steps: tuple[CompiledStep, ...]) -> None:
    names = [name for step in steps for name in step.spec.names]
    for name in names:
        if names.count(name) > 1:
            raise JobDefinitionError(
                f"job {job!r}: two steps use the name {name!r} (name or formerly); rename one with name="
            )
    for step in steps[1:]:
        if step.spec.placement.unique_key is not None:
            raise JobDefinitionError(
                f"job {job!r}: step {step.spec.name!r} has a unique_key, but only the first step can have one: "
                f"the key belongs to the run from enqueue to its end"
            )
    for before, after in itertools.pairwise(steps):
        if before.next_type is Never:
            raise JobDefinitionError(
                f"job {job!r}: step {after.spec.name!r} cannot be reached: "
                f"step {before.spec.name!r} always ends the run (it returns Done)"
            )
        if not _fits(before.next_type, after.input_type):
            hint = ", which is plain JSON" if after.input_type in (Any, object) else ""
            handed, taken = type_names(before.next_type, after.input_type)
            raise JobDefinitionError(
                f"job {job!r}: step {before.spec.name!r} hands over {handed}, "
                f"but step {after.spec.name!r} takes {taken}{hint}"
            )
    if steps[-1].next_type is not Never:
        raise JobDefinitionError(
            f"job {job!r} has no end: its last step {steps[-1].spec.name!r} hands over "
            f"{type_name(steps[-1].next_type)}; return Done from it, or add a step"
        )


def _fits(handed: Any, taken: Any) -> bool:
    """Whether every value of one type can be read as the other without losing anything."""
    handed, taken = (get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in (handed, taken))
    if handed == taken or (handed in (None, type(None)) and taken in (None, type(None))):
        return True
    if taken in (Any, object):
        return codec.codec_for(handed).plain
    taken_kinds = get_args(taken) if get_origin(taken) in (Union, UnionType) else (taken,)
    handed_kinds = get_args(handed) if get_origin(handed) in (Union, UnionType) else (handed,)
    if len(taken_kinds) > 1 or len(handed_kinds) > 1:
        return all(any(_fits(kind, other) for other in taken_kinds) for kind in handed_kinds)
    origin, inner, wanted = get_origin(handed), get_args(handed), get_args(taken)
    if taken in (dict, list):
        return origin is taken and codec.codec_for(handed).plain
    # Part by part, as List[int] is not equal to list[int]
    same = origin is not None and origin is get_origin(taken) and len(inner) == len(wanted)
    return same and all(map(_fits, inner, wanted))
