"""The steps of a job in their order, and the check that each takes what the one before it hands over."""

import itertools
from collections.abc import Iterable
from types import UnionType
from typing import Annotated, Any, Never, Union, get_args, get_origin

from underway.definition.step import CompiledStep, DeclaredStep, compile_step
from underway.errors import JobDefinitionError
from underway.payload import codec
from underway.payload.type_names import type_name, type_names


def compile_chain(job: str, steps: Iterable[DeclaredStep]) -> tuple[CompiledStep, ...]:
    """The steps with their types resolved. Raises JobDefinitionError if they do not fit together."""
    compiled = tuple(compile_step(job, step) for step in steps)
    _check_names(job, compiled)
    _check_unique_keys(job, compiled)
    for before, after in itertools.pairwise(compiled):
        _check_hand_over(job, before, after)
    _check_end(job, compiled[-1])
    return compiled


def _check_names(job: str, steps: tuple[CompiledStep, ...]) -> None:
    names = [name for step in steps for name in step.spec.names]
    for name in names:
        if names.count(name) > 1:
            raise JobDefinitionError(
                f"job {job!r}: two steps use the name {name!r} (name or formerly); rename one with name="
            )


def _check_unique_keys(job: str, steps: tuple[CompiledStep, ...]) -> None:
    for step in steps[1:]:
        if step.spec.placement.unique_key is not None:
            raise JobDefinitionError(
                f"job {job!r}: step {step.spec.name!r} has a unique_key, but only the first step can have one: "
                f"the key belongs to the run from enqueue to its end"
            )


def _check_hand_over(job: str, before: CompiledStep, after: CompiledStep) -> None:
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


def _check_end(job: str, last: CompiledStep) -> None:
    if last.next_type is not Never:
        raise JobDefinitionError(
            f"job {job!r} has no end: its last step {last.spec.name!r} hands over "
            f"{type_name(last.next_type)}; return Done from it, or add a step"
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
