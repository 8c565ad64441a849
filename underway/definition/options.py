"""The options of steps and runs, and their checks."""

import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypedDict
from uuid import UUID

import msgspec
from typing_extensions import Unpack

from underway import ids
from underway.definition.manifest import Placement, Policy, Step
from underway.definition.retry import RetryPolicy
from underway.errors import InvalidOption
from underway.keys import template
from underway.text import checked_text

_LONGEST_NAME = 200
_UNITS = {"b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_UNITS |= {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_LEAST_LEASE = timedelta(seconds=1)


class StepOptions(TypedDict, total=False):
    """Options of `.step(...)`.

    `name` defaults to the function's name; `formerly` are names under which runs may still wait for this step.

    Written into the run's row at enqueue or hand-over: `queue` ("default"), `priority` (0; one unit is a minute's head
    start, -32768 to 32767), `delay` (none), `keep` (14 days: how long a finished run stays readable),
    `concurrency_key` with `concurrency_limit` (1: at most this many runs of a queue with the same key execute at once;
    the others wait in line), `unique_key` (first step only: while a run of the job with this key is live, enqueue
    returns that run). A key is a text in which {field} stands for a field of the step's input, whose type must have it.

    Read when a run is claimed: `retry`, `timeout` (15 minutes: then the step is interrupted, and killed 5 seconds
    later), `memory_limit` (none; bytes or "1 GiB", for the worker and all its descendants), `lease` (60 s: how long a
    supervisor that has vanished keeps its runs; at least 1 s), `max_crashes` (3).
    """

    name: str
    formerly: str | tuple[str, ...]
    retry: RetryPolicy
    timeout: timedelta
    memory_limit: int | str
    lease: timedelta
    max_crashes: int
    queue: str
    priority: int
    delay: timedelta
    keep: timedelta
    unique_key: str
    concurrency_key: str
    concurrency_limit: int


class RunOptions(TypedDict, total=False):
    """Options of one run. They replace those of its first step and mean the same."""

    priority: int
    delay: timedelta
    keep: timedelta
    unique_key: str
    concurrency_key: str


def step(default_name: str, **options: Unpack[StepOptions]) -> Step:
    """The data of a step from its options. Raises InvalidOption, which names the option and its possible values."""
    formerly = options.get("formerly", ())
    if isinstance(formerly, str):
        formerly = (formerly,)
    for option in options:
        if option not in StepOptions.__annotations__:
            raise InvalidOption(f"unknown step option {option!r}; existing: {', '.join(StepOptions.__annotations__)}")
    placement, policy = Placement(), Policy()
    return Step(
        name=checked_name("step", options.get("name", default_name)),
        formerly=tuple(checked_name("formerly", name) for name in formerly),
        placement=Placement(
            queue=checked_name("queue", options.get("queue", placement.queue)),
            priority=checked_priority(options.get("priority", placement.priority)),
            delay=checked_duration("delay", options.get("delay", placement.delay)),
            keep=checked_duration("keep", options.get("keep", placement.keep)),
            unique_key=template.checked("unique_key", options["unique_key"]) if "unique_key" in options else None,
            concurrency_key=(
                template.checked("concurrency_key", options["concurrency_key"])
                if "concurrency_key" in options
                else None
            ),
            concurrency_limit=checked_count(
                "concurrency_limit", options.get("concurrency_limit", placement.concurrency_limit), most=32767
            ),
        ),
        policy=Policy(
            retry=_checked("retry", options.get("retry", policy.retry), RetryPolicy, "a RetryPolicy"),
            timeout=checked_duration(
                "timeout", options.get("timeout", policy.timeout), least=timedelta(milliseconds=1)
            ),
            memory_limit=None
            if options.get("memory_limit") is None
            else checked_size("memory_limit", options["memory_limit"]),
            lease=checked_duration("lease", options.get("lease", policy.lease), least=_LEAST_LEASE),
            max_crashes=checked_count("max_crashes", options.get("max_crashes", policy.max_crashes)),
        ),
    )


def placed(placement: Placement, given: RunOptions) -> Placement:
    """The placement with the options of this run. Raises InvalidOption."""
    if not given:
        return placement
    values: Mapping[str, Any] = given
    checks: dict[str, Callable[[Any], Any]] = {
        "priority": checked_priority,
        "delay": lambda value: checked_duration("delay", value),
        "keep": lambda value: checked_duration("keep", value),
        "unique_key": lambda value: template.checked("unique_key", value),
        "concurrency_key": lambda value: template.checked("concurrency_key", value),
    }
    for option in values:
        if option not in checks:
            raise InvalidOption(f"unknown enqueue option {option!r}; existing: conn, {', '.join(checks)}")
    changes: dict[str, Any] = {option: checks[option](value) for option, value in values.items()}
    return msgspec.structs.replace(placement, **changes)


def checked_name(option: str, value: object) -> str:
    return checked_text(option, value, _LONGEST_NAME)


def checked_label(option: str, value: object) -> str:
    """A dead-letter label. It must not look like a run ID, because some calls take either of them."""
    name = checked_name(option, value)
    if ids.read_id(name) is not None:
        raise InvalidOption(f"{option} must be a dead-letter label, not a run ID: {name!r}")
    return name


def checked_id(value: object) -> UUID:
    run_id = ids.read_id(value)
    if run_id is None:
        raise InvalidOption(f"invalid run ID {value!r}: expected a UUID or its string form")
    return run_id


def checked_priority(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -32768 <= value <= 32767:
        raise InvalidOption(f"priority must be an integer from -32768 to 32767, not {value!r}")
    return value


def checked_duration(option: str, value: object, *, least: timedelta = timedelta(0)) -> timedelta:
    if not isinstance(value, timedelta):
        raise InvalidOption(f"{option} must be a timedelta, not {value!r}")
    # Postgres can add at most this to its clock and still print a date that Python can read.
    if not least <= value <= timedelta(days=365_000):
        raise InvalidOption(f"{option} must be between {least} and 1000 years, not {value}")
    return value


def checked_count(option: str, value: object, *, most: int = 2**31 - 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise InvalidOption(f"{option} must be an integer from 1 to {most:,}, not {value!r}")
    return value


def checked_size(option: str, value: object) -> int:
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?b)", value.strip().lower())):
        unit = _UNITS.get(match[2])
        value = int(float(match[1]) * unit) if unit else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 2**20:
        raise InvalidOption(f'{option} must be at least 1 MiB, as bytes or as in "1 GiB", not {value!r}')
    return value


def _checked(option: str, value: Any, kind: type[Any], text: str) -> Any:
    if not isinstance(value, kind):
        raise InvalidOption(f"{option} must be {text}, not {value!r}")
    return value
