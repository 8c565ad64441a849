"""What a step has returned, checked and encoded for the next step or as the run's result."""

from datetime import timedelta
from typing import Any, NamedTuple

from underway.client.job import Job
from underway.definition.step import CompiledStep
from underway.definition.transition import To
from underway.errors import JobDefinitionError
from underway.keys import template
from underway.payload import codec
from underway.wire.messages import NextStep
from underway.worker.outcome import Outcome


class JobStep(NamedTuple):
    """A step of a job, and the step that follows it, if it is not the last one.

    `next_step` is where the hand-over puts a run, unless a key or a delay of its own is to be filled in.
    """

    job: Job[Any, Any, Any, Any]
    step: CompiledStep
    following: CompiledStep | None
    next_step: NextStep | None


def steps_by_name(jobs: dict[str, Job[Any, Any, Any, Any]]) -> dict[tuple[str, str], JobStep]:
    """All steps by their jobs' names and their own, which include former names."""
    return {
        (job.name, name): JobStep(job, step, following, _constant_next_step(following))
        for job in jobs.values()
        for step, following in zip(job.compiled, (*job.compiled[1:], None), strict=True)
        for name in step.spec.names
    }


def encode(at: JobStep, returned: object) -> Outcome:
    """Raises JobDefinitionError for anything but a hand-over that this step may make, PayloadError for its value."""
    if not isinstance(returned, To):
        raise JobDefinitionError(
            f"step {at.step.spec.name!r} returned {type(returned).__name__}; return To.next(value) or To.done(result)"
        )
    if returned.ends:
        return Outcome("done", codec.encode(returned.value, at.job.result_type))
    if at.following is None:
        raise JobDefinitionError(f"step {at.step.spec.name!r} is the last one: return To.done(result), not To.next")
    payload = codec.encode(returned.value, at.following.input_type)
    if at.next_step is None or returned.delay is not None:
        return Outcome("next", payload, _next_step(at.following, returned.delay, payload))
    return Outcome("next", payload, at.next_step)


def _constant_next_step(following: CompiledStep | None) -> NextStep | None:
    if following is None or following.spec.placement.concurrency_key is not None:
        return None
    return _next_step(following, None, b"")


def _next_step(following: CompiledStep, delay: timedelta | None, payload: bytes) -> NextStep:
    placement = following.spec.placement
    delay = placement.delay if delay is None else delay
    return NextStep(
        following.spec.name,
        placement.queue,
        placement.priority,
        delay.total_seconds(),
        placement.keep.total_seconds(),
        placement.concurrency_key and template.fill(placement.concurrency_key, payload),
        placement.concurrency_limit,
    )
