"""The public names and the signatures of the main calls: a change here is a change for every user."""

import inspect
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import pytest

import underway
from underway import Context, Job, Retry, RetryPolicy, Run, Schedule, To, Underway, aio
from underway.client.job import NewJob
from underway.definition.options import RunOptions, StepOptions

NAMES = [
    "AppNotFound",
    "Attempt",
    "Context",
    "DeadLetter",
    "Done",
    "EmbeddedPostgresError",
    "Fail",
    "ImportSideEffect",
    "InsideStep",
    "Interrupt",
    "InvalidOption",
    "Job",
    "JobDefinitionError",
    "NoDatabase",
    "PayloadError",
    "Quarantined",
    "Retry",
    "RetryPolicy",
    "Run",
    "RunCancelled",
    "RunFailed",
    "RunNotFound",
    "Schedule",
    "SchemaError",
    "SchemaMissing",
    "SchemaTooNew",
    "SchemaTooOld",
    "Status",
    "SupervisorFailed",
    "To",
    "Underway",
    "UnderwayError",
    "UnknownJob",
]


def test_the_public_names() -> None:
    assert underway.__all__ == NAMES
    assert sorted(underway.__all__) == underway.__all__


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_has_a_docstring(name: str) -> None:
    thing = getattr(underway, name)
    if name == "Done":
        return  # an alias of To, which explains it
    assert thing.__doc__
    assert not thing.__doc__.startswith(f"{name}("), "the generated docstring of a dataclass"
    for attribute, method in vars(thing).items():
        if not attribute.startswith("_") and inspect.isfunction(inspect.unwrap(method)):
            assert method.__doc__, f"{name}.{attribute}"


def test_errors_are_one_tree() -> None:
    errors = [getattr(underway, name) for name in NAMES if inspect.isclass(getattr(underway, name))]
    errors = [error for error in errors if issubclass(error, BaseException)]
    outside = {error.__name__ for error in errors if not issubclass(error, underway.UnderwayError)}
    assert outside == {"Fail", "Interrupt", "Retry"}
    assert not issubclass(underway.Interrupt, Exception), "`except Exception` in a step must not swallow it"
    assert issubclass(underway.Fail, Exception)


def test_every_error_is_in_the_documented_tree() -> None:
    from underway import errors

    drawn = errors.__doc__ or ""
    for name, thing in vars(errors).items():
        if inspect.isclass(thing) and issubclass(thing, BaseException) and thing.__module__ == errors.__name__:
            assert f" {name} " in f" {drawn} ".replace("\n", " \n ").replace("(", " ("), name


# Types as they are written in the source, without module and quotes.
SIGNATURES: dict[Callable[..., Any], str] = {
    Underway: "(database: str | None = None) -> None",
    Underway.job: ("(self, name: str, *, state: Callable[[], Any] | None = None) -> NewJob[Any]"),
    Underway.get_run: "(self, run_id: UUID | str) -> Run[Any]",
    Underway.migrate: "(self) -> list[str]",
    Underway.sync: "(self) -> list[str]",
    Underway.run: "(self, procs: int = 2, *, until_idle: bool = False) -> int",
    Underway.close: "(self) -> None",
    Job.enqueue: (
        "(self, value: Any = None, *, conn: psycopg.Connection[Any] | None = None, "
        "**given: Unpack[RunOptions]) -> Run[Any]"
    ),
    Job.enqueue_many: (
        "(self: Job[In, Never, Result], values: Iterable[In], *, "
        "conn: psycopg.Connection[Any] | None = None, "
        "**given: Unpack[RunOptions]) -> list[Run[Result]]"
    ),
    Job.schedule: (
        "(self, cron: str, value: Any = None, *, name: str = 'default', catch_up: Literal[none, last, all] = 'last', "
        "overlap: bool = True, conn: psycopg.Connection[Any] | None = None) -> Schedule"
    ),
    Job.unschedule: "(self, name: str = 'default', *, conn: psycopg.Connection[Any] | None = None) -> bool",
    Underway.schedules: "(self) -> list[Schedule]",
    Schedule.next_slots: "(self, count: int = 1) -> list[datetime]",
    Run.status: "(self) -> Status",
    Run.wait: "(self, timeout: timedelta | float | None = None) -> Status",
    Run.result: "(self, timeout: timedelta | float | None = None) -> R",
    Run.attempts: "(self) -> list[Attempt]",
    Run.cancel: "(self, *, conn: psycopg.Connection[Any] | None = None) -> bool",
    Job.cancel: "(self, *, unique_key: str | None = None, concurrency_key: str | None = None, "
    "conn: psycopg.Connection[Any] | None = None) -> int",
    Job.cancel_all: "(self, *, conn: psycopg.Connection[Any] | None = None) -> int",
    Underway.cancel: ("(self, run_id: UUID | str, *, conn: psycopg.Connection[Any] | None = None) -> bool"),
    Underway.queue: "(self, name: str, *, dead_letter: str | None = None) -> None",
    Underway.pause: "(self, queue: str, *, conn: psycopg.Connection[Any] | None = None) -> bool",
    Underway.resume: "(self, queue: str, *, conn: psycopg.Connection[Any] | None = None) -> bool",
    Underway.dead_letters: "(self, label: str, *, limit: int = 100) -> list[DeadLetter]",
    Underway.quarantined: ("(self, job: str | None = None, *, limit: int = 100) -> list[Quarantined]"),
    Underway.release_quarantined: (
        "(self, job: str | None = None, *, limit: int | None = None, "
        "conn: psycopg.Connection[Any] | None = None) -> int"
    ),
    Underway.discard: (
        "(self, run_or_label: Run[Any] | UUID | str, *, conn: psycopg.Connection[Any] | None = None) -> int"
    ),
    Context.enqueue: "(self, job: JobDefinition[_In, Never, _R], value: _In) -> Run[_R]",
    Context.progress: "(self, done: float, total: float | None = None, note: str = '') -> None",
    Retry: "(message: str = '', *, after: timedelta | None = None) -> None",
    To.next: "(value: _Value, *, delay: timedelta | None = None) -> To[_Value, Never]",
    To.done: "(result: Any = None) -> To[Never, Any]",
}


def spelled(annotation: Any) -> str:
    """A type in canonical spelling. (Python versions print signatures differently.)"""
    if isinstance(annotation, str):
        return annotation
    if isinstance(annotation, list):  # the arguments of a Callable
        return f"[{', '.join(map(spelled, annotation))}]"
    if annotation in (None, NoneType):
        return "None"
    origin, arguments = get_origin(annotation), [spelled(argument) for argument in get_args(annotation)]
    if origin in (Union, UnionType):
        return " | ".join(arguments)
    name = str((origin or annotation).__name__)
    return f"{name}[{', '.join(arguments)}]" if arguments else name


class Unquoted(str):
    """An annotation that a signature prints without quotes."""

    def __repr__(self) -> str:
        return str(self)


@pytest.mark.parametrize("call", SIGNATURES, ids=lambda call: call.__qualname__)
def test_signatures(call: Callable[..., Any]) -> None:
    signature = inspect.signature(call)
    parameters = [
        parameter
        if parameter.annotation is parameter.empty
        else parameter.replace(annotation=Unquoted(spelled(parameter.annotation)))
        for parameter in signature.parameters.values()
    ]
    returned = Unquoted(spelled(signature.return_annotation))
    assert str(signature.replace(parameters=parameters, return_annotation=returned)) == SIGNATURES[call]


# Declarations, and `run`, which is for programs without an event loop.
DECLARATIONS: set[object] = {
    *(Underway.job, Underway.queue, Underway.on_worker_end, Underway.manifest, Underway.run),
    *(Job.step, Job.manifest),
}
# On the async side, jobs and apps share one namespace.
OTHER_NAMES: dict[object, str] = {Underway.cancel: "cancel_run"}


def operations(kind: type[Any]) -> dict[str, Callable[..., Any]]:
    """The public methods of a class and its bases, apart from declarations."""
    methods = {name: getattr(kind, name) for name in dir(kind) if not name.startswith("_")}
    return {
        OTHER_NAMES.get(method, name): method
        for name, method in methods.items()
        if inspect.isfunction(method) and method not in DECLARATIONS
    }


MIRRORED: list[tuple[Callable[..., Any], Callable[..., Any] | None]] = [
    *((method, getattr(aio, name, None)) for kind in (Job, Underway) for name, method in operations(kind).items()),
    *((method, operations(aio.AsyncRun).get(name)) for name, method in operations(Run).items()),
]


@pytest.mark.parametrize(("sync", "mirror"), MIRRORED, ids=[sync.__qualname__ for sync, _ in MIRRORED])
def test_the_async_client_mirrors_the_sync_one(sync: Callable[..., Any], mirror: Callable[..., Any] | None) -> None:
    assert mirror is not None, "forgotten"
    assert mirror.__doc__
    assert inspect.iscoroutinefunction(mirror) or mirror is aio.connection
    # `self` is the first argument there. The connection is of the other kind.
    _, *expected = inspect.signature(sync).parameters.values()
    _, *found = inspect.signature(mirror).parameters.values()
    assert [(one.name, one.kind, one.default) for one in found] == [
        (one.name, one.kind, one.default) for one in expected
    ]


def test_the_async_client_has_nothing_else() -> None:
    assert aio.__all__ == sorted(aio.__all__)
    mirrors = {mirror.__name__ for sync, mirror in MIRRORED if mirror is not None and "Run." not in sync.__qualname__}
    assert set(aio.__all__) == {"AsyncRun", *mirrors}
    assert operations(aio.AsyncRun).keys() == operations(Run).keys()


def test_step_takes_a_function_and_the_options() -> None:
    for step in (NewJob.step, Job.step):
        assert list(inspect.signature(step).parameters) == ["self", "function", "given"]
    assert list(StepOptions.__annotations__) == [
        "name",
        "formerly",
        "retry",
        "timeout",
        "memory_limit",
        "lease",
        "max_crashes",
        "queue",
        "priority",
        "delay",
        "keep",
        "unique_key",
        "concurrency_key",
        "concurrency_limit",
    ]
    assert list(RunOptions.__annotations__) == ["priority", "delay", "keep", "unique_key", "concurrency_key"]
    described = StepOptions.__doc__ or ""
    assert [option for option in StepOptions.__annotations__ if f"`{option}`" not in described] == []


def test_the_attributes_of_a_context() -> None:
    public = {name for name in dir(Context) if not name.startswith("_")}
    assert public == {
        "attempt",
        "deadline",
        "enqueue",
        "job",
        "log",
        "progress",
        "run_id",
        "scheduled_at",
        "state",
        "step",
        "tx",
    }


def test_the_attributes_of_an_attempt() -> None:
    assert list(inspect.signature(underway.Attempt).parameters) == [
        "step",
        "number",
        "outcome",
        "error",
        "started_at",
        "finished_at",
        "host",
        "pid",
        "cpu_seconds",
        "peak_rss",
    ]


def test_states_are_strings() -> None:
    assert [str(status) for status in underway.Status] == [
        "pending",
        "waiting",
        "in_progress",
        "succeeded",
        "failed",
        "cancelled",
    ]


def test_the_retry_policys_defaults() -> None:
    policy = RetryPolicy()
    assert (policy.max_attempts, policy.backoff_coefficient, policy.jitter) == (5, 2.0, 0.5)
    assert (policy.initial_interval.total_seconds(), policy.max_interval.total_seconds()) == (1, 60)


def test_the_package_is_typed() -> None:
    from importlib.resources import files

    assert files("underway").joinpath("py.typed").is_file()
