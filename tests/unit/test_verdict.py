"""Promise 7: the verdict on each ending, cell by cell."""

import random
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from underway.definition.manifest import Lane, Policy, Step
from underway.definition.retry import RetryPolicy
from underway.postgres.queries import statements
from underway.postgres.transitions import AdvanceRun, Attempt, FinishRun, succeed
from underway.supervisor.tasks.task import Task
from underway.supervisor.tasks.verdict import VERDICTS, Charge, Observation, crash_delay, decide, what_follows
from underway.wire.messages import NextStep

POLICY = Policy(retry=RetryPolicy(max_attempts=4, initial_interval=timedelta(seconds=8), jitter=0.5), max_crashes=3)
STARTED = Attempt("to be replaced", error="what happened", started=2.0, pid=7, cpu_seconds=1.5, peak_rss=99)
NEVER = STARTED._replace(started=None)


def task(**counters: int) -> Task:
    given: dict[str, Any] = {"number": 5, "attempts": 0, "crashes": 0, "releases": 2, **counters}
    return Task(
        run="run",
        token=11,
        lane=Lane("queue", "job", "old name"),
        step=Step("step", formerly=("old name",), policy=POLICY),
        input=b"{}",
        claimed_at=0.0,
        lease_deadline=60.0,
        **given,
    )


def decided(
    seen: Observation, *, attempt: Attempt = STARTED, after: float | None = None, **counters: int
) -> FinishRun | AdvanceRun:
    attempt = attempt._replace(outcome=VERDICTS[seen].outcome)
    return decide(task(**counters), seen, attempt, random.Random(1), after)


def advanced(row: FinishRun | AdvanceRun) -> AdvanceRun:
    assert isinstance(row, AdvanceRun)
    return row


def finished(row: FinishRun | AdvanceRun) -> FinishRun:
    assert isinstance(row, FinishRun)
    return row


def test_the_table_cell_by_cell() -> None:
    assert {
        Observation.NEXT: ("succeeded", Charge.NOTHING),
        Observation.DONE: ("succeeded", Charge.NOTHING),
        Observation.RETRY: ("failed", Charge.ATTEMPT),
        Observation.FAIL: ("failed", Charge.FAILURE),
        Observation.INTERRUPTED_TIMEOUT: ("timed_out", Charge.ATTEMPT),
        Observation.INTERRUPTED_SHUTDOWN: ("released", Charge.RELEASE),
        Observation.KILLED_TIMEOUT: ("timed_out", Charge.ATTEMPT),
        Observation.KILLED_MEMORY: ("out_of_memory", Charge.CRASH),
        Observation.KILLED_SHUTDOWN: ("released", Charge.RELEASE),
        Observation.KILLED_FOR_ANOTHER: ("released", Charge.RELEASE),
        Observation.KILLED_LEASE: ("released", Charge.RELEASE),
        Observation.DIED: ("crashed", Charge.CRASH),
        Observation.OUT_OF_MEMORY: ("out_of_memory", Charge.CRASH),
        Observation.NEVER_STARTED: ("released", Charge.RELEASE),
        Observation.UNSTORABLE: ("failed", Charge.ATTEMPT),
        Observation.TOO_LARGE: ("failed", Charge.FAILURE),
        Observation.CANCELLED: ("cancelled", Charge.CANCEL),
        Observation.KILLED_CANCEL: ("cancelled", Charge.CANCEL),
    } == VERDICTS
    assert set(VERDICTS) == set(Observation), "an ending without a verdict"


def test_every_outcome_can_be_stored(connection: psycopg.Connection[Any]) -> None:
    for outcome in {verdict.outcome for verdict in VERDICTS.values()}:
        connection.execute(
            """insert into underway.attempt (run_id, token, attempt_number, finished_at, step, outcome)
            values (%s, 1, 1, now(), 'step', %s)""",
            [uuid4(), outcome],
        )


ATTEMPTS = [seen for seen in Observation if VERDICTS[seen].charge is Charge.ATTEMPT]
CRASHES = [seen for seen in Observation if VERDICTS[seen].charge is Charge.CRASH]
RELEASES = [seen for seen in Observation if VERDICTS[seen].charge is Charge.RELEASE]


@pytest.mark.parametrize("seen", ATTEMPTS)
def test_an_attempt_is_charged_and_backs_off(seen: Observation) -> None:
    for attempts in range(3):
        row = advanced(decided(seen, attempts=attempts, crashes=1))
        assert (row.attempts, row.crashes, row.releases, row.number) == (attempts + 1, 1, 2, 6)
        longest = 8.0 * 2**attempts
        assert longest / 2 <= row.delay <= longest
    row = advanced(decided(seen, after=0.0))
    assert row.delay == 0, "the delay that the step asked for, also if it is zero"
    assert advanced(decided(seen, after=3600.0)).delay == 3600


@pytest.mark.parametrize("seen", ATTEMPTS)
@pytest.mark.parametrize("after", [None, 1.0])
def test_the_last_attempt_fails_the_run(seen: Observation, after: float | None) -> None:
    # more than allowed: max_attempts has been lowered since
    for attempts in (3, 4, 10):
        row = finished(decided(seen, attempts=attempts, crashes=2, after=after))
        assert (row.state, row.payload, row.attempts, row.crashes) == ("failed", None, attempts + 1, 2)
        assert row.attempt.error == "what happened"
        assert row.attempt.outcome == VERDICTS[seen].outcome


def test_a_failure_fails_the_run_at_once() -> None:
    row = finished(decided(Observation.FAIL))
    assert (row.run, row.token, row.state, row.payload) == ("run", 11, "failed", None)
    assert (row.attempts, row.crashes) == (1, 0)


@pytest.mark.parametrize("seen", CRASHES)
def test_a_crash_is_charged_and_makes_a_suspect(seen: Observation) -> None:
    for crashes in range(2):
        row = advanced(decided(seen, crashes=crashes, attempts=3))
        assert (row.attempts, row.crashes, row.releases, row.number) == (3, crashes + 1, 2, 6)
        assert row.delay == crash_delay(crashes + 1) == 2**crashes


@pytest.mark.parametrize("seen", CRASHES)
def test_the_last_crash_quarantines_the_run_with_evidence(seen: Observation) -> None:
    for crashes in (2, 3, 7):
        row = finished(decided(seen, crashes=crashes, attempts=1))
        assert (row.state, row.payload, row.attempts, row.crashes) == ("failed", None, 1, crashes + 1)
        assert row.attempt.error == f"quarantined after {crashes + 1} crashes: what happened"
        assert row.attempt.outcome == VERDICTS[seen].outcome


@pytest.mark.parametrize("seen", [seen for seen in Observation if VERDICTS[seen].charge is not Charge.NOTHING])
def test_the_log_says_what_follows_for_the_run(seen: Observation) -> None:
    charge = VERDICTS[seen].charge
    first, last = ("", "")
    if charge is Charge.ATTEMPT:
        first, last = ", again in 3.2 s", ", its run has failed"
    elif charge is Charge.FAILURE:
        first = last = ", its run has failed"
    elif charge is Charge.CRASH:
        first, last = ", again in 1.0 s", ", its run is quarantined"
    assert what_follows(decided(seen, after=3.2), charge) == first
    assert what_follows(decided(seen, attempts=3, crashes=2), charge) == last


def test_the_number_of_crashes_is_spelled_correctly() -> None:
    only = task()
    only.step = Step("step", policy=Policy(max_crashes=1))
    row = finished(decide(only, Observation.DIED, STARTED, random.Random(1)))
    assert row.attempt.error == "quarantined after 1 crash: what happened"


@pytest.mark.parametrize("seen", RELEASES)
def test_releases_are_free_any_number_of_times(seen: Observation) -> None:
    for attempts, crashes, releases in ((0, 0, 0), (3, 2, 0), (50, 50, 1000)):
        row = advanced(decided(seen, attempts=attempts, crashes=crashes, releases=releases))
        assert (row.attempts, row.crashes, row.releases) == (attempts, crashes, releases + 1)
        assert row.delay == 0


@pytest.mark.parametrize("seen", [*ATTEMPTS, *CRASHES, *RELEASES])
def test_a_run_that_is_tried_again_stays_at_its_step(seen: Observation) -> None:
    row = advanced(decided(seen))
    assert (row.run, row.token, row.payload) == ("run", 11, None)
    # the name under which it was claimed: a renamed step must not move queued runs
    assert (row.step, row.queue, row.priority, row.keep) == ("old name", None, None, None)
    assert (row.ran_step, row.ran_number) == ("old name", 6)
    assert row.number == 6
    assert advanced(decided(seen, attempt=NEVER)).number == 5, "an unstarted task is not an attempt"


def test_success_ends_the_run_or_takes_it_to_the_next_step() -> None:
    before = task(attempts=2, crashes=1)
    finish = finished(succeed(before, STARTED, None, b"[1]"))
    assert finish == FinishRun("run", 11, "succeeded", b"[1]", 2, 1, STARTED)
    following = NextStep("after", "other queue", 9, 30.0, 120.0, "customer 7", 2)
    row = advanced(succeed(before, STARTED, following, b"[2]"))
    assert all(getattr(row, name) == placed for name, placed in following._asdict().items())
    assert row.payload == b"[2]"
    # counters belong to a step; the next one starts at zero
    assert (row.number, row.attempts, row.crashes, row.releases) == (0, 0, 0, 0)
    assert (row.ran_step, row.ran_number, row.attempt) == ("old name", 6, STARTED)


def test_a_suspect_is_a_run_whose_process_has_died() -> None:
    assert not task(attempts=9, releases=9).suspect
    assert task(crashes=1).suspect
    assert task(number=0).attempt == 1


def test_suspects_wait_longer_each_time_up_to_a_minute() -> None:
    assert [crash_delay(crashes) for crashes in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert crash_delay(10_000) == 60


def test_the_reaper_uses_the_same_backoff(connection: psycopg.Connection[Any]) -> None:
    """Crashes are found in Python and in SQL, with the same back-off."""
    for crashes in (*range(9), 50):
        connection.execute(
            """insert into underway.run (id, due_at, rank, keep, state, queue, job, step, input, crashes, max_crashes,
                lease_expires_at, token, owner)
            values (%s, now(), now(), '1 day', 'in_progress', 'q', 'j', 's', '{}', %s, 1000, now() - interval '1 s',
                1, gen_random_uuid())""",
            [uuid4(), crashes],
        )
    with connection.transaction():
        reaped = connection.execute(
            statements()["reap_runs"], {"limit": 100, "expired_by": None, "passing_over": 0}
        ).fetchall()
        assert len(reaped) == 10
        found = connection.execute(
            "select crashes, extract(epoch from due_at - now())::float8, state, attempt_number from underway.run"
        ).fetchall()
    assert found
    for crashes, delay, state, number in found:
        assert delay == pytest.approx(crash_delay(crashes), abs=0.001)
        assert (state, number) == ("waiting", 1)
