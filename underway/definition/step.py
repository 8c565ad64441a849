"""One step of a job with its types resolved: what it takes, hands on and may end the run with."""

import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from types import UnionType
from typing import Any, Never, TypeAlias, Union, get_args, get_origin, get_type_hints

from typing_extensions import TypeVar, Unpack

from underway.definition import manifest, options
from underway.definition.options import StepOptions
from underway.definition.transition import To
from underway.errors import JobDefinitionError, PayloadError
from underway.keys import fields
from underway.payload import codec
from underway.payload.type_names import type_name

_N = TypeVar("_N")
_R = TypeVar("_R")

# What a step returns: an `async def` gives the hand-over when it is awaited.
Returned: TypeAlias = To[_N, _R] | Awaitable[To[_N, _R]]


@dataclass(frozen=True, slots=True)
class DeclaredStep:
    """A function with its options, as `.step(...)` takes them. Its types are resolved later, by `compile_step`."""

    function: Callable[..., Any]
    spec: manifest.Step


@dataclass(frozen=True, slots=True)
class CompiledStep:
    """A step whose types are known. `next_type` is Never for a step that always ends the run."""

    function: Callable[..., Returned[Any, Any]]
    spec: manifest.Step
    takes_input: bool
    input_type: Any
    next_type: Any
    result_type: Any


def declare_step(function: Callable[..., Any], **given: Unpack[StepOptions]) -> DeclaredStep:
    """Check the options. Raises InvalidOption, or JobDefinitionError for a `function` that cannot be called."""
    if not callable(function):
        raise JobDefinitionError(f"a step must be a function, not {function!r}")
    named = function.func if isinstance(function, functools.partial) else function
    default_name = getattr(named, "__name__", type(named).__name__)
    return DeclaredStep(function, options.step(default_name, **given))


def compile_step(job: str, step: DeclaredStep) -> CompiledStep:
    """Resolve the types of a step from its annotations. Raises JobDefinitionError."""
    where = f"job {job!r}, step {step.spec.name!r}"
    hints = _hints(where, step.function)
    parameters = _parameters(where, step.function, hints)
    input_type = _input_type(where, parameters, hints)
    next_type, result_type = _handed_over(where, hints)
    for kind in (input_type, next_type, result_type):
        if kind is not Never:
            _check_json(where, kind)
    _check_keys(where, step.spec.placement, input_type)
    return CompiledStep(step.function, step.spec, len(parameters) == 2, input_type, next_type, result_type)


def _hints(where: str, function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a step function, resolved."""
    plain = function if inspect.isroutine(function) else type(function).__call__
    if isinstance(function, functools.partial):
        plain = function.func
    if inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain):
        raise JobDefinitionError(f"{where}: a step must be a function or an async function, not a generator")
    try:
        return get_type_hints(plain, include_extras=True)
    except NameError as error:
        raise JobDefinitionError(
            f"{where}: cannot resolve its annotations: {error}; each type must be a global of the module at runtime, "
            f"not local to a function and not imported only under TYPE_CHECKING"
        ) from error


def _parameters(where: str, function: Callable[..., Any], hints: dict[str, Any]) -> list[inspect.Parameter]:
    """The context and, if the step takes one, the input."""
    try:
        signature = inspect.signature(function)
    except ValueError as error:  # some built-in functions have no signature
        raise JobDefinitionError(f"{where}: a step must take (cx) or (cx, input), but {error}") from error
    declared = list(signature.parameters.values())
    # The second one is the input even if it has a default: type checkers see it the same way.
    ours = [one for one in declared if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)][:2]
    required = [
        one for one in declared if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    others = [one for one in required if one not in ours]
    if not ours or others or _is_input_type(hints.get(ours[0].name, object)):
        raise JobDefinitionError(f"{where}: a step must take (cx) or (cx, input), not {signature}")
    return ours


def _is_input_type(kind: Any) -> bool:
    """Whether JSON can carry values of this type. It cannot carry a Context."""
    try:
        codec.check_type(kind)
    except PayloadError:
        return False
    return kind not in (Any, object)


def _input_type(where: str, parameters: list[inspect.Parameter], hints: dict[str, Any]) -> Any:
    if len(parameters) < 2:
        return None
    name = parameters[1].name
    if name not in hints:
        raise JobDefinitionError(f"{where}: parameter {name!r} must be annotated with the input type of the step")
    return hints[name]


def _handed_over(where: str, hints: dict[str, Any]) -> tuple[Any, Any]:
    """The types in the return annotation: (next input or Never, result or Never)."""
    if "return" not in hints:
        raise JobDefinitionError(
            f"{where}: its return type must be annotated: To[NextInput], or Done for the last step"
        )
    annotation = hints["return"]
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


def _check_json(where: str, kind: Any) -> None:
    try:
        codec.check_type(kind)
    except PayloadError as error:
        raise JobDefinitionError(f"{where}: {error}") from error


def _check_keys(where: str, placement: manifest.Placement, input_type: Any) -> None:
    templates = {"unique_key": placement.unique_key, "concurrency_key": placement.concurrency_key}
    for option, template in templates.items():
        if template is not None and (reason := fields.mismatch(template, input_type)):
            raise JobDefinitionError(f"{where}: {option} {template!r} {reason}")
