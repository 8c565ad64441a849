"""The app that the simulated workers have imported: its jobs, and where their runs are placed."""

from datetime import timedelta
from typing import NamedTuple

from underway.definition.manifest import Job, Manifest, Placement, Policy, Step
from underway.definition.retry import RetryPolicy
from underway.wire import messages

LEASE = 2.0
POLICY = Policy(
    retry=RetryPolicy(3, timedelta(seconds=0.1), timedelta(seconds=1)),
    timeout=timedelta(seconds=3),
    memory_limit=1000,
    lease=timedelta(seconds=LEASE),
)
UNSTORABLE = b'"cannot be stored"'
# Inputs, and the concurrency limit of a key that is made of each.
LIMITS = {b'"red"': 1, b'"green"': 2}
# The steps of each job with their concurrency keys: kept, exchanged for another, newly needed, released.
JOBS: dict[str, dict[str, str | None]] = {
    "short": {"a": None},
    "long": {"a": None},
    "even": {"a": None},
    "odd": {"a": None},
    "parent": {"a": None},
    "chain": {"a": None, "b": None, "c": None},
    "keyed": {"a": "{color}", "b": "{color}", "c": "other {color}"},
    "swap": {"a": None, "b": "{color}", "c": None},
}
COMMON = tuple(job for job in JOBS if job not in ("even", "odd"))


class Key(NamedTuple):
    text: str
    limit: int


def key_of(job: str, step: str, given: bytes) -> Key | None:
    """The concurrency key of a run of this job with this input at this step."""
    template = JOBS[job][step]
    return None if template is None else Key(template.replace("{color}", given.decode()), LIMITS[given])


def first_step(job: str) -> str:
    return next(iter(JOBS[job]))


def following_step(job: str, step: str) -> str | None:
    steps = list(JOBS[job])
    return None if step == steps[-1] else steps[steps.index(step) + 1]


def placement_of(job: str, step: str, given: bytes, delay: float = 0.0) -> messages.NextStep:
    """The placement that a worker would send."""
    key = key_of(job, step, given)
    return messages.NextStep(step, "default", 0, delay, 60.0, key and key.text, key and key.limit)


def _job(name: str, policy: Policy) -> Job:
    return Job(
        name,
        tuple(Step(step, placement=Placement(concurrency_key=key), policy=policy) for step, key in JOBS[name].items()),
    )


def code(policy: Policy = POLICY) -> dict[str, Manifest]:
    """The versions of the app: a reload changes between two with different jobs, and the last one has all jobs."""
    known = {"even": (*COMMON, "even"), "odd": (*COMMON, "odd"), "all": JOBS}
    return {name: Manifest(tuple(_job(job, policy) for job in jobs)) for name, jobs in known.items()}
