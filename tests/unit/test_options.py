"""The accepted and refused values of each option of a step."""

from datetime import timedelta
from typing import Any

import pytest

from underway import Context, Done, InvalidOption, JobDefinitionError, RetryPolicy, To, Underway
from underway.definition.options import RunOptions, StepOptions, step

YEARS_1000 = timedelta(days=365_000)
NAME = "must (be a string of 1 to 200 characters|not contain NUL or half a surrogate pair)"
DURATION = "must be a timedelta"

KEYS_REFUSED = [
    "",
    "a\0b",
    "a\ud800",
    "x" * 401,
    1,
    None,
    b"a",
    "{",
    "}",
    "{}",
    "a{b",
    "{a}}",
    "{{a}}",
    "{.a}",
    "{a.}",
    "{a..b}",
]
KEYS_ACCEPTED = ["a", "x" * 400, "{a}", "{a.b.c}-{d} {a}", "{with space}", "a\nb", "{ü}🦆"]

REFUSED: dict[str, tuple[str, list[Any]]] = {
    "name": (f"name {NAME}|step {NAME}", ["", "a\0b", "x" * 201, 1, None, b"a"]),
    "formerly": (f"formerly {NAME}", ["", ("ok", ""), (1,), ("a\0",)]),
    "retry": ("retry must be a RetryPolicy", [3, None, {}, RetryPolicy]),
    "timeout": ("timeout must be", [300, 1.5, None, timedelta(0), timedelta(seconds=-1), YEARS_1000 * 2, "5 min"]),
    "memory_limit": (
        'memory_limit must be at least 1 MiB, as bytes or as in "1 GiB"',
        [
            0,
            -1,
            1023,
            2**20 - 1,
            1.5,
            True,
            "",
            "1",
            "GiB",
            "1 PiB",
            "-1 GiB",
            "1 GiB!",
            "0.5 MiB",
            "1,5 GiB",
            b"1 GiB",
        ],
    ),
    "lease": ("lease must be", [60, None, timedelta(0), timedelta(milliseconds=999), YEARS_1000 * 2]),
    "max_crashes": ("max_crashes must be an integer from 1", [0, -1, 1.0, True, None, "3"]),
    "queue": (f"queue {NAME}", ["", "a\0b", "x" * 201, 1, None]),
    "priority": ("priority must be an integer from -32768 to 32767", [-32769, 32768, 1.0, True, None, "1"]),
    "delay": ("delay must be", [0, 1.5, None, timedelta(microseconds=-1), YEARS_1000 * 2]),
    "keep": ("keep must be", [0, 14, None, timedelta(days=-1), YEARS_1000 * 2]),
    "unique_key": (
        "unique_key(: invalid key template| must (be a string of 1 to 400 characters|not contain NUL))",
        KEYS_REFUSED,
    ),
    "concurrency_key": (
        "concurrency_key(: invalid key template| must (be a string of 1 to 400 characters|not contain NUL))",
        KEYS_REFUSED,
    ),
    "concurrency_limit": (
        "concurrency_limit must be an integer from 1 to 32,767",
        [0, -1, 1.0, True, None, "3", 32768],
    ),
}

ACCEPTED: dict[str, list[Any]] = {
    "name": ["a", "x" * 200, 'tab\t "quote" \\ ü 🦆'],
    "formerly": ["a", (), ("a", "b"), ["a"]],
    "retry": [RetryPolicy(), RetryPolicy(max_attempts=1)],
    "timeout": [timedelta(milliseconds=1), timedelta(days=30), YEARS_1000],
    "memory_limit": [2**20, 2**40, "1 MiB", None],
    "lease": [timedelta(seconds=1), timedelta(hours=1)],
    "max_crashes": [1, 1000],
    "queue": ["a", "x" * 200],
    "priority": [-32768, 0, 32767],
    "delay": [timedelta(0), YEARS_1000],
    "keep": [timedelta(0), YEARS_1000],
    "unique_key": KEYS_ACCEPTED,
    "concurrency_key": KEYS_ACCEPTED,
    "concurrency_limit": [1, 2, 32767],
}


def works(cx: Context) -> Done:
    return To.done()


def works_on(cx: Context, anything: Any) -> Done:
    return To.done()


def hands_on(cx: Context) -> To[None]:
    return To.next(None)


def test_the_tables_above_contain_every_option() -> None:
    assert set(REFUSED) == set(ACCEPTED) == set(StepOptions.__annotations__)


@pytest.mark.parametrize(("option", "value"), [(option, value) for option in REFUSED for value in REFUSED[option][1]])
def test_an_invalid_value_is_refused_at_the_declaration(option: str, value: Any) -> None:
    given: Any = {option: value}
    app = Underway()
    with pytest.raises(InvalidOption, match=f"^({REFUSED[option][0]})"):
        app.job("job").step(works, **given)
    assert app.jobs == {}


@pytest.mark.parametrize(("option", "value"), [(option, value) for option in ACCEPTED for value in ACCEPTED[option]])
def test_a_valid_value_is_accepted(option: str, value: Any) -> None:
    given: Any = {option: value}
    Underway().job("job").step(works_on, **given).manifest()


@pytest.mark.parametrize(
    ("option", "value"), [(option, value) for option in RunOptions.__annotations__ for value in REFUSED[option][1]]
)
def test_an_invalid_value_for_one_run_is_refused_before_connecting(option: str, value: Any) -> None:
    given: Any = {option: value}
    job = Underway("postgresql://user@nowhere.invalid/none").job("job").step(works)
    for enqueue in (lambda: job.enqueue(**given), lambda: job.enqueue_many([None], **given)):
        with pytest.raises(InvalidOption, match=f"^({REFUSED[option][0]})"):
            enqueue()


def test_an_unknown_option_of_a_run_is_refused_with_a_list_of_options() -> None:
    given: Any = {"queue": "other"}
    with pytest.raises(
        InvalidOption, match="unknown enqueue option 'queue'; existing: conn, priority, delay, keep, unique"
    ):
        Underway().job("job").step(works).enqueue(**given)


def test_a_unique_key_belongs_to_the_first_step() -> None:
    job = Underway().job("job").step(hands_on).step(works, unique_key="a", name="second")
    with pytest.raises(JobDefinitionError, match=r"'second' has a unique_key, but only the first step can have one"):
        job.manifest()


def test_an_unknown_option_is_refused_with_a_list_of_options() -> None:
    given: Any = {"tries": 3}
    with pytest.raises(InvalidOption, match="unknown step option 'tries'; existing: name, formerly, retry, timeout"):
        Underway().job("job").step(works, **given)


def test_an_invalid_option_is_also_a_value_error() -> None:
    assert issubclass(InvalidOption, ValueError)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1 GiB", 2**30),
        ("1GiB", 2**30),
        (" 1 gib ", 2**30),
        ("1.5 GiB", 3 * 2**29),
        ("512 MiB", 2**29),
        ("1024 KiB", 2**20),
        ("2 TiB", 2**41),
        ("1048576 B", 2**20),
        ("2 MB", 2_000_000),
        ("2000 kB", 2_000_000),
        ("1 GB", 10**9),
        ("1 TB", 10**12),
        (123_456_789, 123_456_789),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert step("works", memory_limit=text).policy.memory_limit == size


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_attempts": 0}, "max_attempts must be at least 1"),
        ({"initial_interval": timedelta(seconds=-1)}, "0 <= initial_interval <= max_interval"),
        ({"initial_interval": timedelta(minutes=2)}, "0 <= initial_interval <= max_interval"),
        ({"backoff_coefficient": 0.5}, "backoff_coefficient must be at least 1"),
        ({"backoff_coefficient": float("nan")}, "backoff_coefficient must be at least 1"),
        ({"jitter": -0.1}, "jitter must be between 0 and 1"),
        ({"jitter": 1.1}, "jitter must be between 0 and 1"),
        ({"jitter": float("nan")}, "jitter must be between 0 and 1"),
        ({"max_attempts": "3"}, "max_attempts must be at least 1"),
        ({"max_attempts": 2.5}, "max_attempts must be at least 1"),
        ({"max_attempts": True}, "max_attempts must be at least 1"),
        ({"initial_interval": 1}, "initial_interval and max_interval must be timedeltas"),
        ({"max_interval": 60}, "at most 1000 years"),
        ({"max_interval": timedelta(days=400_000)}, "at most 1000 years"),
        ({"backoff_coefficient": "2"}, "backoff_coefficient and jitter must be numbers"),
        ({"jitter": None}, "backoff_coefficient and jitter must be numbers"),
    ],
)
def test_a_retry_policy_checks_its_values(given: Any, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        RetryPolicy(**given)
