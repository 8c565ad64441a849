"""Declaring jobs: valid and invalid chains, names, options, and the manifest of a worker."""

import functools
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, List, Never, Optional, Union  # noqa: UP035

import msgspec
import pytest

from underway import Context, Done, InvalidOption, Job, JobDefinitionError, Retry, RetryPolicy, To, Underway
from underway.client.job import NewJob
from underway.definition.manifest import Lane, Manifest, Placement, Policy, Step


@dataclass
class Order:
    number: int


@dataclass
class Receipt:
    text: str


def price(cx: Context, order: Order) -> To[Receipt]:
    return To.next(Receipt(str(order.number)))


def price_or_stop(cx: Context, order: Order) -> To[Receipt, str]:
    return To.done("")


def send(cx: Context, receipt: Receipt) -> Done[int]:
    return To.done(1)


def post(cx: Context, receipt: Receipt) -> Done:
    return To.done()


def sweep(cx: Context) -> Done:
    return To.done()


def begin(cx: Context) -> To[None]:
    return To.next(None)


def many(cx: Context, orders: list[Order]) -> Done:
    return To.done()


def later_defined(cx: Context, order: "DefinedBelow") -> "To[DefinedBelow]":
    return To.next(order)


def takes_later_defined(cx: Context, order: "DefinedBelow") -> Done:
    return To.done()


@dataclass
class DefinedBelow:
    number: int


@pytest.fixture
def app() -> Underway:
    return Underway("postgresql://nowhere")


def chain(app: Underway, *functions: Callable[..., Any]) -> Job[Any, Any, Any]:
    """A job of these steps, without the type checker."""
    job: Any = app.job("job")
    for function in functions:
        job = job.step(function)
    assert isinstance(job, Job)
    return job


def refusal(app: Underway, *functions: Callable[..., Any]) -> str:
    """The message with which these steps are refused, both by the manifest and by an enqueue."""
    job = chain(app, *functions)
    with pytest.raises(JobDefinitionError) as refused:
        app.manifest()
    with pytest.raises(JobDefinitionError, match=re.escape(str(refused.value))):
        job.enqueue(None)
    with pytest.raises(JobDefinitionError, match=re.escape(str(refused.value))):
        job.enqueue_many([])
    return str(refused.value)


# Invalid chains


def test_a_mismatch_names_both_steps_and_both_types(app: Underway) -> None:
    assert refusal(app, price, many) == (
        "job 'job': step 'price' hands over Receipt, but step 'many' takes list[Order]"
    )


def test_a_step_without_input_must_be_handed_none(app: Underway) -> None:
    assert refusal(app, price, sweep) == "job 'job': step 'price' hands over Receipt, but step 'sweep' takes None"
    chain(Underway(), begin, sweep).manifest()


def test_a_step_after_the_end_is_refused(app: Underway) -> None:
    message = refusal(app, price, send, post)
    assert message == "job 'job': step 'post' cannot be reached: step 'send' always ends the run (it returns Done)"


def test_a_job_without_an_end_is_refused(app: Underway) -> None:
    message = refusal(app, price_or_stop)
    assert message.startswith("job 'job' has no end: its last step 'price_or_stop' hands over Receipt")


def test_annotations_are_required(app: Underway) -> None:
    def no_input_type(cx, order) -> Done:  # type: ignore[no-untyped-def]
        return To.done()

    def no_return_type(cx: Context, order: Order):  # type: ignore[no-untyped-def]
        return To.done()

    assert "step 'no_input_type': parameter 'order' must be annotated" in refusal(app, no_input_type)
    assert "step 'no_return_type': its return type must be annotated" in refusal(Underway(), no_return_type)
    assert "annotate" in refusal(Underway(), lambda cx, order: To.done())


def test_a_step_must_return_a_hand_over(app: Underway) -> None:
    def bare_value(cx: Context, order: Order) -> Receipt:
        return Receipt("")

    def nothing(cx: Context, order: Order) -> None: ...

    def bare_to(cx: Context, order: Order) -> To:  # type: ignore[type-arg]
        return To.done()

    def perhaps(cx: Context, order: Order) -> Done | None:
        return None

    for function, said in ((bare_value, "Receipt"), (nothing, "None"), (bare_to, "To"), (perhaps, "| None")):
        message = refusal(Underway(), function)
        assert f"step {function.__name__!r}: it returns " in message
        assert said in message
        assert "a step must return To[NextInput], To[NextInput, Result] or Done[Result]" in message


def test_a_step_takes_a_context_and_at_most_one_input() -> None:
    def none() -> Done:
        return To.done()

    def two(cx: Context, order: Order, receipt: Receipt) -> Done:
        return To.done()

    def keyword(cx: Context, *, order: Order) -> Done:
        return To.done()

    def no_context(order: Order) -> Done:
        return To.done()

    def context_last(order: Order, cx: Context) -> Done:
        return To.done()

    assert "a step must take (cx) or (cx, input), not (order: " in refusal(Underway(), no_context)
    assert "a step must take (cx) or (cx, input), not (order: " in refusal(Underway(), context_last)
    assert "step 'keyword': a step must take (cx) or (cx, input), not (cx: " in refusal(Underway(), keyword)
    assert "step 'none': a step must take (cx) or (cx, input), not ()" in refusal(Underway(), none)
    assert "step 'two': a step must take (cx) or (cx, input), not (cx: " in refusal(Underway(), two)


def test_async_functions_are_steps(app: Underway) -> None:
    async def coroutine(cx: Context, order: Order) -> To[Receipt, int]:
        return To.done(1)

    async def again(cx: Context, order: Order) -> To[Receipt]:
        return To.next(Receipt(""))

    def awaitable(cx: Context, receipt: Receipt) -> Awaitable[Done[str]]:
        raise NotImplementedError

    class Called:
        async def __call__(self, cx: Context, receipt: Receipt) -> Done[bytes]:
            return To.done(b"")

    compiled = chain(app, coroutine, awaitable).compiled
    assert [(step.input_type, step.next_type, step.result_type) for step in compiled] == [
        (Order, Receipt, int),
        (Receipt, Never, str),
    ]
    assert chain(Underway(), functools.partial(coroutine), Called()).result_type == int | bytes
    assert "hands over Receipt, but step 'coroutine' takes Order" in refusal(Underway(), again, coroutine)


def test_generators_are_refused() -> None:
    def generator(cx: Context) -> Any:
        yield To.done()

    async def async_generator(cx: Context) -> Any:
        yield To.done()

    for function in (generator, async_generator, functools.partial(generator)):
        assert "a step must be a function or an async function, not a generator" in refusal(Underway(), function)


def test_a_state_factory_must_be_a_function(app: Underway) -> None:
    def generator() -> Iterator[int]:
        yield 1

    wrong: Any
    for wrong in (1, "model"):
        with pytest.raises(
            InvalidOption, match="job 'job': state must be a function that returns the state of a worker"
        ):
            app.job("job", state=wrong)
    with pytest.raises(InvalidOption, match="state must return the state, not yield it"):
        app.job("job", state=generator)


def test_types_that_cannot_travel_are_refused() -> None:
    def takes(cx: Context, value: Callable[[], None]) -> Done:
        return To.done()

    def ends(cx: Context, value: int) -> "Done[re.Pattern[str]]":
        return To.done(re.compile(""))

    assert "step 'takes': Callable" in refusal(Underway(), takes)
    assert "step 'ends': Pattern[str] cannot travel as JSON" in refusal(Underway(), ends)


def test_an_unknown_annotation_is_refused() -> None:
    def step(cx: Context, value: "Nowhere") -> Done:  # type: ignore[name-defined]  # noqa: F821
        return To.done()

    assert "step 'step': cannot resolve its annotations: name 'Nowhere'" in refusal(Underway(), step)
    assert "not imported only under TYPE_CHECKING" in refusal(Underway(), step)


def test_a_step_must_be_callable(app: Underway) -> None:
    step: Any = "price"
    with pytest.raises(JobDefinitionError, match="a step must be a function, not 'price'"):
        app.job("job").step(step)


@pytest.mark.parametrize("step", [dict, int, print, Order, functools.partial(print)])
def test_odd_callables_are_refused(step: Any) -> None:
    refusal(Underway(), step)


# Names


def test_two_jobs_with_one_name_are_refused(app: Underway) -> None:
    chain(app, sweep)
    with pytest.raises(JobDefinitionError, match="duplicate job name 'job'"):
        app.job("job")


def test_two_unfinished_jobs_with_one_name_are_refused(app: Underway) -> None:
    first, second = app.job("job"), app.job("job")
    first.step(sweep)
    with pytest.raises(JobDefinitionError, match="duplicate job name 'job'"):
        second.step(begin)


def test_a_chain_that_is_continued_twice_is_refused(app: Underway) -> None:
    begun = app.job("job").step(price)
    begun.step(send)
    with pytest.raises(JobDefinitionError, match="duplicate job name 'job'"):
        begun.step(post)


def test_two_steps_with_one_name_are_refused(app: Underway) -> None:
    def again(cx: Context, order: Order) -> To[Order]:
        return To.next(order)

    job = app.job("job").step(again).step(again).step(price).step(post)
    with pytest.raises(JobDefinitionError, match="job 'job': two steps use the name 'again'"):
        job.manifest()
    named = Underway().job("job").step(again, name="first").step(again, name="second").step(price).step(post)
    assert [step.name for step in named.manifest().steps] == ["first", "second", "price", "post"]


@pytest.mark.parametrize("formerly", ["price", ("x", "price"), "send", ("y", "y")])
def test_a_former_name_must_not_be_the_name_of_another_step(app: Underway, formerly: Any) -> None:
    job = app.job("job").step(price).step(send, formerly=formerly)
    with pytest.raises(JobDefinitionError, match="two steps use the name"):
        job.manifest()


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 201, None, 3])
def test_a_job_must_have_a_valid_name(app: Underway, name: Any) -> None:
    with pytest.raises(InvalidOption, match=r"job must (be a string of 1 to 200 characters|not contain NUL)"):
        app.job(name)


# Valid chains


def test_step_returns_a_new_job(app: Underway) -> None:
    new = app.job("job")
    assert isinstance(new, NewJob)
    begun = new.step(price)
    whole = begun.step(send)
    assert begun is not whole
    assert repr(begun) == "<Job job: price>"
    assert repr(whole) == "<Job job: price -> send>"
    assert app.jobs == {"job": whole}
    whole.manifest()
    with pytest.raises(JobDefinitionError, match="has no end"):
        begun.manifest()


def test_forward_references_are_resolved_when_needed(app: Underway) -> None:
    compiled = chain(app, later_defined, takes_later_defined).compiled
    assert compiled[0].input_type is DefinedBelow
    assert compiled[0].next_type is DefinedBelow
    assert compiled[1].input_type is DefinedBelow


def test_methods_callable_objects_and_partials_are_steps() -> None:
    class Mailer:
        def method(self, cx: Context, receipt: Receipt) -> Done[str]:
            return To.done(receipt.text)

        @classmethod
        def of_class(cls, cx: Context, receipt: Receipt) -> Done[str]:
            return To.done("")

        @staticmethod
        def static(cx: Context, receipt: Receipt) -> Done[str]:
            return To.done("")

        def __call__(self, cx: Context, receipt: Receipt) -> Done[str]:
            return To.done("")

    def with_more(cx: Context, receipt: Receipt, *, sender: str, copies: int = 1) -> Done[str]:
        return To.done(sender)

    def with_default(cx: Context, receipt: Receipt, copies: int = 1) -> Done[str]:
        return To.done("")

    @functools.wraps(with_default)
    def wrapped(*args: Any, **options: Any) -> Any:
        return with_default(*args, **options)

    def default_input(cx: Context, receipt: Receipt = Receipt("")) -> Done[str]:  # noqa: B008
        return To.done("")

    def leading(sender: str, cx: Context, receipt: Receipt) -> Done[str]:
        return To.done(sender)

    steps: dict[str, Any] = {
        "method": Mailer().method,
        "of_class": Mailer.of_class,
        "static": Mailer.static,
        "Mailer": Mailer(),
        "with_more": functools.partial(with_more, sender="me"),
        "with_default": wrapped,
        "default_input": default_input,
        "leading": functools.partial(leading, "me"),
    }
    for name, function in steps.items():
        (compiled,) = chain(Underway(), function).compiled
        assert compiled.spec.name == name
        assert compiled.takes_input
        assert compiled.input_type is Receipt
        assert compiled.next_type is Never
        assert compiled.result_type is str


def plain_done(cx: Context, order: Order) -> Done:
    return To.done()


def done_of_none(cx: Context, order: Order) -> Done[None]:
    return To.done()


def never_next(cx: Context, order: Order) -> To[Never, int]:
    return To.done(1)


def optional_result(cx: Context, order: Order) -> Done[str | None]:
    return To.done()


def union_of_ends(cx: Context, order: Order) -> Done[str] | Done[int]:
    return To.done(1)


@pytest.mark.parametrize(
    ("function", "result"),
    [
        (plain_done, None),
        (done_of_none, None),
        (never_next, int),
        (optional_result, str | None),
        (union_of_ends, str | int),
    ],
)
def test_results(app: Underway, function: Any, result: Any) -> None:
    job = chain(app, function)
    assert job.compiled[0].next_type is Never
    assert job.result_type == result or (result is None and job.result_type is type(None))


def test_the_result_type_of_a_job_is_the_union_of_its_steps(app: Underway) -> None:
    assert chain(app, price_or_stop, send).result_type == str | int
    # To[Receipt] alone means To[Receipt, None], as for a type checker
    assert chain(Underway(), price, send).result_type == int | None


def union_next(cx: Context, order: Order) -> To[Receipt, str] | Done[int]:
    return To.done(1)


def either(cx: Context, order: Order) -> "To[Receipt | Order]":
    return To.next(order)


def takes_either(cx: Context, value: Union[Order, Receipt, None]) -> Done:  # noqa: UP007
    return To.done()


def takes_optional(cx: Context, value: Optional[Receipt]) -> Done:  # noqa: UP045
    return To.done()


def takes_any(cx: Context, value: Any) -> Done:
    return To.done()


def takes_object(cx: Context, value: object) -> Done:
    return To.done()


def to_list(cx: Context) -> To[list[int]]:
    return To.next([1])


def takes_bare_list(cx: Context, value: list) -> Done:  # type: ignore[type-arg]
    return To.done()


def to_orders(cx: Context) -> To[List[Order]]:  # noqa: UP006
    return To.next([])


def takes_anythings(cx: Context, value: list[Any]) -> Done:
    return To.done()


def takes_positive(cx: Context, value: list[Annotated[int, msgspec.Meta(gt=0)]]) -> Done:
    return To.done()


@pytest.mark.parametrize(
    ("before", "after", "fits"),
    [
        (union_next, send, True),
        (price, takes_optional, True),
        (price, takes_either, True),
        (either, takes_either, True),
        (either, takes_optional, False),
        (either, send, False),
        (to_list, takes_any, True),
        (begin, takes_object, True),
        (price, takes_any, False),  # it would receive a dict
        (either, takes_object, False),
        (to_list, takes_bare_list, True),
        (to_orders, takes_bare_list, False),
        (to_orders, many, True),
        (to_orders, takes_anythings, False),
        (to_list, takes_positive, True),
        (to_list, many, False),
        (begin, takes_optional, True),
    ],
)
def test_unions_and_wider_types_fit(app: Underway, before: Any, after: Any, fits: bool) -> None:
    if fits:
        chain(app, before, after).manifest()
    else:
        assert "hands over" in refusal(app, before, after)


def test_hand_overs_and_retries_check_their_delay() -> None:
    delay: Any
    for delay in (5, timedelta(seconds=-1), "1 s"):
        with pytest.raises(InvalidOption, match="delay must be a timedelta between 0 and 1000 years"):
            To.next(1, delay=delay)
    after: Any
    for after in (5, "1 s"):
        with pytest.raises(InvalidOption, match="after must be a timedelta, not "):
            Retry(after=after)
    assert repr(To.next(1)) == "To.next(1)"
    assert repr(To.done("x")) == "To.done('x')"


# The manifest


def test_manifest_of_defaults_and_of_all_options(app: Underway) -> None:
    app.job("orders").step(price).step(
        send,
        name="deliver",
        formerly=("send", "post"),
        retry=RetryPolicy(max_attempts=3, jitter=0),
        timeout=timedelta(seconds=5),
        memory_limit="1 GiB",
        lease=timedelta(seconds=30),
        max_crashes=1,
        queue="slow",
        priority=-7,
        delay=timedelta(hours=1),
        keep=timedelta(days=1),
    )
    (job,) = app.manifest().jobs
    assert job.name == "orders"
    assert job.steps == (
        Step("price", (), Placement("default", 0, timedelta(0), timedelta(days=14)), Policy()),
        Step(
            "deliver",
            ("send", "post"),
            Placement("slow", -7, timedelta(hours=1), timedelta(days=1)),
            Policy(RetryPolicy(3, jitter=0), timedelta(seconds=5), 2**30, timedelta(seconds=30), 1),
        ),
    )
    assert Policy() == Policy(RetryPolicy(), timedelta(minutes=15), None, timedelta(seconds=60), 3)


def test_manifest_round_trips_as_json(app: Underway) -> None:
    app.job('orders "\t\\ü').step(price, queue="a\nb", retry=RetryPolicy(2, timedelta(seconds=0.1))).step(
        send, memory_limit="2 MiB", formerly="x", delay=timedelta(microseconds=1)
    )
    app.job("sweeps").step(sweep)
    manifest = app.manifest()
    assert manifest.database == "postgresql://nowhere"
    assert Manifest.from_json(manifest.to_json()) == manifest
    with pytest.raises(msgspec.ValidationError):
        Manifest.from_json(b'{"jobs": 1}')


def test_lanes_cover_every_step_under_every_name(app: Underway) -> None:
    app.job("orders").step(price, queue="fast").step(send, formerly="post")
    lanes = dict(app.manifest().lanes())
    assert list(lanes) == [
        Lane("fast", "orders", "price"),
        Lane("default", "orders", "send"),
        Lane("default", "orders", "post"),
    ]
    assert lanes[Lane("default", "orders", "post")].name == "send"


def test_manifest_has_no_database_if_none_is_specified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNDERWAY_DATABASE_URL", raising=False)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    assert Underway().manifest() == Manifest((), None)
    monkeypatch.setenv("DATABASE_URL", "postgresql://second")
    assert Underway().database.url == "postgresql://second"
    monkeypatch.setenv("UNDERWAY_DATABASE_URL", "postgresql://first")
    assert Underway().database.url == "postgresql://first"
    assert Underway("postgresql://named").database.url == "postgresql://named"
