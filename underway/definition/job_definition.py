"""What a user declares as a job: a name, its steps, and what each worker keeps for them."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Generic, Never, Union

from typing_extensions import TypeVar

from underway.definition import manifest
from underway.definition.chain import compile_chain
from underway.definition.step import CompiledStep, DeclaredStep
from underway.errors import InvalidOption

In = TypeVar("In")
Next = TypeVar("Next")
Result = TypeVar("Result")


class JobDefinition(Generic[In, Next, Result]):
    """The declaration of a job, without a database. `underway.Job` adds the calls that need one.

    `In` is what `enqueue` takes, `Next` what the last step hands on (Never for a complete job), `Result` what
    `Run.result()` returns. `make_state` is the job's `state=` factory.
    """

    def __init__(self, name: str, steps: tuple[DeclaredStep, ...], make_state: Callable[[], Any] | None) -> None:
        self.name = name
        self.steps = steps
        self.make_state = make_state

    @functools.cached_property
    def compiled(self) -> tuple[CompiledStep, ...]:
        """The steps with their types resolved. Raises JobDefinitionError if they do not fit together."""
        return compile_chain(self.name, self.steps)

    @functools.cached_property
    def result_type(self) -> Any:
        """The union of the results with which the steps may end a run."""
        kinds = [step.result_type for step in self.compiled if step.result_type is not Never]
        return Union[tuple(kinds)] if kinds else None  # noqa: UP007

    def manifest(self) -> manifest.Job:
        """The job as pure data. Raises JobDefinitionError if its steps do not fit together."""
        return manifest.Job(self.name, tuple(step.spec for step in self.compiled))

    def __repr__(self) -> str:
        return f"<Job {self.name}: {' -> '.join(step.spec.name for step in self.steps)}>"


def checked_factory(job: str, state: Callable[[], Any] | None) -> Callable[[], Any] | None:
    """Raise InvalidOption for a `state=` that is not a plain or async function."""
    if state is None:
        return None
    if not callable(state):
        raise InvalidOption(f"job {job!r}: state must be a function that returns the state of a worker, not {state!r}")
    if inspect.isgeneratorfunction(state) or inspect.isasyncgenfunction(state):
        raise InvalidOption(f"job {job!r}: state must return the state, not yield it: no code after a yield would run")
    return state
