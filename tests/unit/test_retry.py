"""The back-off of a failed step."""

import random
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from underway import errors
from underway.definition.retry import RetryPolicy

intervals = st.timedeltas(timedelta(0), timedelta(days=3650))
policies = st.builds(
    lambda first, more, coefficient, jitter: RetryPolicy(
        initial_interval=first, max_interval=first + more, backoff_coefficient=coefficient, jitter=jitter
    ),
    intervals,
    intervals,
    st.floats(1, allow_nan=False, allow_infinity=False),
    st.floats(0, 1),
)


class Rigged(random.Random):
    """Always draws the same point between `a` and `b`."""

    def __init__(self, share: float) -> None:
        super().__init__(0)
        self.share = share

    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * self.share


def test_the_default_doubles_up_to_a_minute() -> None:
    policy = RetryPolicy()
    assert policy.max_attempts == 5
    assert [policy.wait(n, Rigged(1)) for n in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert [policy.wait(n, Rigged(0)) for n in range(1, 9)] == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_without_jitter_the_wait_is_fixed() -> None:
    policy = RetryPolicy(jitter=0, initial_interval=timedelta(milliseconds=100), backoff_coefficient=3)
    assert [policy.wait(n, random.Random(n)) for n in (1, 2, 3)] == pytest.approx([0.1, 0.3, 0.9])


def test_with_full_jitter_the_wait_is_fully_random() -> None:
    policy = RetryPolicy(jitter=1)
    assert policy.wait(3, Rigged(0)) == 0
    assert policy.wait(3, Rigged(1)) == 4


def test_a_coefficient_of_one_keeps_the_wait_constant() -> None:
    policy = RetryPolicy(backoff_coefficient=1.0, jitter=0)
    assert {policy.wait(n, random.Random(0)) for n in (1, 2, 10, 10_000)} == {1.0}


def test_the_wait_may_be_zero() -> None:
    policy = RetryPolicy(initial_interval=timedelta(0), max_interval=timedelta(0))
    assert policy.wait(1, random.Random(0)) == policy.wait(10**9, random.Random(0)) == 0


@given(policies, st.integers(1, 10**6), st.integers())
def test_the_wait_is_within_the_range_of_its_jitter(policy: RetryPolicy, failures: int, seed: int) -> None:
    first, longest = policy.initial_interval.total_seconds(), policy.max_interval.total_seconds()
    try:
        target = min(first * policy.backoff_coefficient ** (failures - 1), longest)
    except OverflowError:
        target = longest if first else 0.0
    wait = policy.wait(failures, random.Random(seed))
    assert wait == wait  # not NaN
    assert target * (1 - policy.jitter) * (1 - 1e-9) <= wait <= target * (1 + 1e-9)
    assert wait <= longest * (1 + 1e-9)


@given(policies, st.integers(1, 5000))
def test_the_wait_never_decreases(policy: RetryPolicy, failures: int) -> None:
    assert policy.wait(failures, Rigged(1)) <= policy.wait(failures + 1, Rigged(1)) * (1 + 1e-9)


@pytest.mark.parametrize("failures", [1_000, 1_025, 5_000, 10**6, 10**12])
def test_the_wait_stays_at_its_maximum_after_thousands_of_failures(failures: int) -> None:
    assert RetryPolicy().wait(failures, Rigged(1)) == 60
    assert 30 <= RetryPolicy(max_attempts=failures).wait(failures, random.Random(1)) <= 60


def test_two_draws_differ() -> None:
    rng = random.Random(7)
    assert len({RetryPolicy().wait(5, rng) for _ in range(10)}) == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_attempts": 0}, "max_attempts must be at least 1"),
        ({"max_attempts": -3}, "not -3"),
        ({"initial_interval": timedelta(seconds=-1)}, "0 <= initial_interval <= max_interval"),
        ({"max_interval": timedelta(seconds=-1)}, "0 <= initial_interval <= max_interval"),
        ({"initial_interval": timedelta(seconds=61)}, "not 0:01:01 and 0:01:00"),
        ({"max_interval": timedelta(milliseconds=999)}, "0 <= initial_interval <= max_interval"),
        ({"backoff_coefficient": 0.99}, "backoff_coefficient must be at least 1 and finite, not 0.99"),
        ({"backoff_coefficient": -2.0}, "backoff_coefficient"),
        ({"backoff_coefficient": float("nan")}, "backoff_coefficient"),
        ({"backoff_coefficient": float("inf")}, "backoff_coefficient must be at least 1 and finite, not inf"),
        ({"jitter": -0.01}, "jitter must be between 0 and 1, not -0.01"),
        ({"jitter": 1.01}, "jitter"),
        ({"jitter": float("nan")}, "jitter"),
    ],
)
def test_each_invalid_value_is_an_invalid_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.InvalidOption) as refused:
        RetryPolicy(**options)
    assert message in str(refused.value)
    assert isinstance(refused.value, ValueError)


@pytest.mark.parametrize(
    "options",
    [
        {"max_attempts": 1},
        {"initial_interval": timedelta(seconds=60)},
        {"backoff_coefficient": 1},
        {"jitter": 0},
        {"jitter": 1},
    ],
)
def test_the_limits_themselves_are_allowed(options: dict[str, Any]) -> None:
    assert RetryPolicy(**options)


def test_a_policy_is_a_value() -> None:
    assert RetryPolicy() == RetryPolicy()
    assert hash(RetryPolicy()) == hash(RetryPolicy())
    with pytest.raises(AttributeError):
        RetryPolicy().jitter = 0.1  # type: ignore[misc]
