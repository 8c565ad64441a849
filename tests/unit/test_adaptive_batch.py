"""How the limits of a batch shrink and grow."""

import pytest

from underway.postgres.reconnecting import STATEMENT_SECONDS, DatabaseUnavailable
from underway.supervisor.loops.adaptive_batch import AdaptiveBatch

SLOW = STATEMENT_SECONDS / 2


def interrupt(batch: AdaptiveBatch, times: int) -> None:
    for _ in range(times):
        batch.interrupted(batch.rows, batch.size)


def test_an_interrupted_statement_is_repeated_with_a_quarter() -> None:
    batch = AdaptiveBatch(1000, 8000)
    interrupt(batch, 1)
    assert (batch.rows, batch.size, batch.seconds) == (250, 2000, STATEMENT_SECONDS)


def test_the_quarter_is_of_the_actual_size_not_of_the_limit() -> None:
    batch = AdaptiveBatch(1000, 8000)
    batch.interrupted(8, 400)
    assert (batch.rows, batch.size) == (2, 100)


@pytest.mark.parametrize("rows", [1, 7, 500, 5000])
def test_the_limit_never_falls_below_one_row(rows: int) -> None:
    batch = AdaptiveBatch(rows, rows)
    interrupt(batch, 20)
    assert (batch.rows, batch.size) == (1, rows // 1024)


def test_a_single_row_gets_more_time_up_to_a_limit() -> None:
    batch = AdaptiveBatch(1, 8000, longest=3 * STATEMENT_SECONDS)
    allowed = []
    for _ in range(3):
        interrupt(batch, 1)
        allowed.append(batch.seconds)
    assert allowed == [2 * STATEMENT_SECONDS, 3 * STATEMENT_SECONDS, 3 * STATEMENT_SECONDS]


def test_the_timeout_is_reset_after_a_quick_statement() -> None:
    batch = AdaptiveBatch(1, longest=100 * STATEMENT_SECONDS)
    interrupt(batch, 3)
    batch.succeeded(1, seconds=2 * STATEMENT_SECONDS)
    assert batch.seconds == 4 * STATEMENT_SECONDS
    batch.succeeded(1, seconds=0.1)
    assert batch.seconds == STATEMENT_SECONDS


def test_limits_grow_slowly_up_to_their_maximum() -> None:
    batch = AdaptiveBatch(100, 8000)
    interrupt(batch, 10)
    seen = []
    while (batch.rows, batch.size) < (100, 8000):
        seen.append(batch.rows)
        batch.succeeded(batch.rows, batch.size)
    assert seen[0] == 1
    assert seen == sorted(seen)
    assert len(seen) > 10
    batch.succeeded(100, 8000)
    assert (batch.rows, batch.size) == (100, 8000)


def test_small_statements_do_not_make_limits_grow() -> None:
    batch = AdaptiveBatch(1000, 8000)
    interrupt(batch, 1)
    for _ in range(50):
        batch.succeeded(3, 30)
    assert (batch.rows, batch.size) == (250, 2000)


def test_each_limit_grows_independently() -> None:
    batch = AdaptiveBatch(1000, 8000)
    interrupt(batch, 1)
    for _ in range(50):
        batch.succeeded(batch.rows, 30)
    assert (batch.rows, batch.size) == (1000, 2000)


def test_a_slow_statement_makes_limits_shrink_before_it_is_interrupted() -> None:
    batch = AdaptiveBatch(1000, 8000)
    batch.succeeded(400, 8000, seconds=SLOW)
    assert (batch.rows, batch.size) == (200, 4000)


def test_other_exceptions_do_not_make_limits_shrink() -> None:
    batch = AdaptiveBatch(100)
    with pytest.raises(ValueError), batch.smaller_if_interrupted(100):  # noqa: PT011
        raise ValueError
    assert batch.rows == 100
    with pytest.raises(DatabaseUnavailable), batch.smaller_if_interrupted(100):
        raise DatabaseUnavailable
    assert batch.rows == 25
