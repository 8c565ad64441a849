"""What a store must do, one scenario per function. test_store_scenarios.py runs each with both stores."""

import random
import time
from collections.abc import Sequence

from simulation.app import JOBS, POLICY, following_step, placement_of
from simulation.subjects import AnyStore, Scenario, Subject, View
from underway.definition.manifest import Lane, Step
from underway.postgres.supervisor_store import ANY_SIZE, Claimed, Lanes, Renewal
from underway.postgres.transitions import AdvanceRun, Attempt, FinishRun, succeed
from underway.supervisor.tasks.task import Task, from_claim
from underway.supervisor.tasks.verdict import Observation, decide

LEASE = POLICY.lease.total_seconds()
# Longer than any back-off of POLICY, and shorter than a lease.
BACKOFF = 1.1
RED, GREEN = b'"red"', b'"green"'
SCENARIOS: list[Scenario] = []


def scenario(function: Scenario) -> Scenario:
    SCENARIOS.append(function)
    return function


# What supervisors do


def all_lanes() -> Lanes:
    return Lanes((Lane("default", job, step), POLICY) for job, steps in JOBS.items() for step in steps)


async def claim(store: AnyStore, tasks: int = 10, *, suspects: int = 1, size: int = ANY_SIZE) -> list[Claimed]:
    return await store.claim(all_lanes(), tasks, candidates=tasks, suspects=suspects, size=size)


def names(claimed: Sequence[Claimed]) -> list[str]:
    return [run.run for run in claimed]


def task_of(run: Claimed) -> Task:
    return from_claim(run, Step(run.lane.step, policy=POLICY), 0.0)


def tried(outcome: str = "succeeded") -> Attempt:
    return Attempt(outcome, "an error" if outcome != "succeeded" else None, started=time.monotonic() - 0.01)


def finished(run: Claimed) -> FinishRun:
    row = succeed(task_of(run), tried(), None, b'"result"')
    assert isinstance(row, FinishRun)
    return row


def advanced(run: Claimed, delay: float = 0.0) -> AdvanceRun:
    """The hand-over to the next step of the run's job, with the same input."""
    step = following_step(run.lane.job, run.lane.step)
    assert step is not None
    row = succeed(task_of(run), tried(), placement_of(run.lane.job, step, run.input, delay), run.input)
    assert isinstance(row, AdvanceRun)
    return row


def failed(
    run: Claimed, seen: Observation = Observation.RETRY, attempt: Attempt | None = None
) -> AdvanceRun | FinishRun:
    return decide(task_of(run), seen, attempt or tried("failed"), random.Random(1))


async def write(store: AnyStore, *rows: AdvanceRun | FinishRun) -> set[int]:
    """Commit these ends, and return the tokens for which the fence held."""
    done: set[int] = set()
    if ends := [row for row in rows if isinstance(row, FinishRun)]:
        done |= await store.finish(ends, [])
    if hand_overs := [row for row in rows if isinstance(row, AdvanceRun)]:
        done |= (await store.continue_(hand_overs, [])).keys()
    return done


# Claims


@scenario
async def a_claim_takes_the_oldest_runs_first(subject: Subject) -> None:
    runs = [subject.enqueue("short") for _ in range(5)]
    assert names(await claim(subject.store("a"), 3)) == runs[:3]
    assert names(await claim(subject.store("b"), 3)) == runs[3:]
    assert await claim(subject.store("b")) == []


@scenario
async def each_claim_has_a_larger_token(subject: Subject) -> None:
    for _ in range(3):
        subject.enqueue("short")
    tokens = [(await claim(subject.store(name), 1))[0].token for name in "aba"]
    assert tokens == sorted(set(tokens))


@scenario
async def a_claim_leaves_lanes_that_it_does_not_name(subject: Subject) -> None:
    unknown, known = subject.enqueue("long"), subject.enqueue("short")
    lanes = Lanes([(Lane("default", "short", "a"), POLICY)])
    assert names(await subject.store("a").claim(lanes, 10, candidates=10, suspects=1)) == [known]
    assert subject.view(unknown).state == "pending"


@scenario
async def a_claim_is_limited_in_bytes_but_takes_at_least_one_run(subject: Subject) -> None:
    runs = [subject.enqueue("short", b'"%s"' % (b"x" * 98)) for _ in range(3)]
    assert names(await claim(subject.store("a"), size=250)) == runs[:2]
    assert names(await claim(subject.store("a"), size=10)) == runs[2:]


@scenario
async def a_claim_from_the_cursor_sees_only_later_runs(subject: Subject) -> None:
    store, lanes = subject.store("a"), all_lanes()
    first, second = subject.enqueue("short"), subject.enqueue("short")
    (run,) = await store.claim(lanes, 1, candidates=1, suspects=0)
    (other,) = await store.claim(lanes, 1, candidates=1, suspects=0, from_start=False)
    assert [run.run, other.run] == [first, second]
    await write(store, failed(run, Observation.NEVER_STARTED, Attempt("released")))
    assert await store.claim(lanes, 1, candidates=1, suspects=0, from_start=False) == []
    assert names(await store.claim(lanes, 1, candidates=1, suspects=0)) == [first]


@scenario
async def a_locked_run_is_skipped(subject: Subject) -> None:
    first, second = subject.enqueue("short"), subject.enqueue("short")
    with subject.row_locked(first):
        assert names(await claim(subject.store("a"))) == [second]
    assert names(await claim(subject.store("a"))) == [first]


@scenario
async def a_claim_takes_as_many_suspects_as_allowed(subject: Subject) -> None:
    runs = [subject.enqueue("short") for _ in range(2)]
    await claim(subject.store("dead"))
    await subject.pass_time(LEASE + 1)
    assert len(await subject.store("a").reap(10)) == 2
    await subject.pass_time(2)
    assert await subject.store("a").promote(10) == 2
    assert await claim(subject.store("a"), suspects=0) == []
    (suspect,) = await claim(subject.store("a"))
    assert (suspect.run, suspect.crashes) == (runs[0], 1)


# The fence


@scenario
async def a_run_is_finished_once(subject: Subject) -> None:
    run, store = subject.enqueue("short"), subject.store("a")
    (claimed,) = await claim(store)
    assert await write(store, finished(claimed)) == {claimed.token}
    assert await write(store, finished(claimed)) == set()
    assert (subject.view(run), subject.outcomes(run)) == (View("succeeded"), ["succeeded"])


@scenario
async def another_supervisor_cannot_write(subject: Subject) -> None:
    run = subject.enqueue("chain")
    (claimed,) = await claim(subject.store("a"))
    other = subject.store("b")
    assert await write(other, finished(claimed), advanced(claimed)) == set()
    assert await other.renew([Renewal(run, claimed.token, LEASE, None)]) == set()
    assert await other.owned([run]) == {}
    assert (subject.view(run).state, subject.outcomes(run)) == ("in_progress", [])


@scenario
async def a_late_owner_changes_nothing(subject: Subject) -> None:
    run, late, new = subject.enqueue("chain"), subject.store("late"), subject.store("new")
    (old,) = await claim(late)
    await subject.pass_time(LEASE + 1)
    assert [(reaped, final) for reaped, _, final in await new.reap(10)] == [(run, None)]
    await subject.pass_time(2)
    await new.promote(10)
    (current,) = await claim(new)
    assert await write(late, finished(old), advanced(old)) == set()
    assert await late.renew([Renewal(run, old.token, LEASE, None)]) == set()
    assert await write(new, finished(current)) == {current.token}
    assert (subject.view(run), subject.outcomes(run)) == (View("succeeded"), ["lost", "succeeded"])


@scenario
async def the_fence_is_judged_for_each_run(subject: Subject) -> None:
    """One run of a group is fenced out; the others are written."""
    runs = [subject.enqueue("short") for _ in range(3)]
    store = subject.store("a")
    first, second, third = await claim(store)
    wrong = finished(second)._replace(token=third.token)
    assert await write(store, finished(first), wrong) == {first.token}
    assert [subject.view(run).state for run in runs] == ["succeeded", "in_progress", "in_progress"]


@scenario
async def a_locked_run_is_not_written_and_stays_owned(subject: Subject) -> None:
    run, store = subject.enqueue("short"), subject.store("a")
    (claimed,) = await claim(store)
    with subject.row_locked(run):
        assert await write(store, finished(claimed)) == set()
        assert await store.renew([Renewal(run, claimed.token, LEASE, None)]) == set()
        assert await store.owned([run]) == {(run, claimed.token): False}
    assert await write(store, finished(claimed)) == {claimed.token}


@scenario
async def recorded_attempts_are_found(subject: Subject) -> None:
    runs, store = [subject.enqueue("chain"), subject.enqueue("short")], subject.store("a")
    first, second = await claim(store)
    await write(store, advanced(first))
    keys = [(first.run, first.token), (second.run, second.token)]
    assert await store.recorded(keys) == {(runs[0], first.token): "succeeded"}


# Hand-overs


@scenario
async def a_hand_over_places_the_run_at_its_next_step(subject: Subject) -> None:
    run, store = subject.enqueue("chain", b"[1]"), subject.store("a")
    (claimed,) = await claim(store)
    assert await write(store, advanced(claimed)) == {claimed.token}
    assert subject.view(run) == View("pending", "b", b"[1]")
    (again,) = await claim(store)
    assert (again.lane.step, again.number, again.token > claimed.token) == ("b", 0, True)


@scenario
async def a_delayed_hand_over_waits_until_it_is_due(subject: Subject) -> None:
    run, store = subject.enqueue("chain"), subject.store("a")
    (claimed,) = await claim(store)
    await write(store, advanced(claimed, delay=30))
    assert subject.view(run).state == "waiting"
    assert await store.promote(10) == 0
    await subject.pass_time(31)
    assert await store.promote(10) == 1
    assert subject.view(run).state == "pending"


@scenario
async def a_run_that_stays_is_claimed_by_its_hand_over(subject: Subject) -> None:
    run, store = subject.enqueue("chain"), subject.store("a")
    (claimed,) = await claim(store)
    tokens = await store.continue_([advanced(claimed)], [], [POLICY])
    token = tokens[claimed.token]
    assert token is not None
    assert await store.owned([run]) == {(run, token): False}
    assert (subject.view(run).state, subject.view(run).step) == ("in_progress", "b")
    assert await claim(subject.store("b")) == []


@scenario
async def a_retry_counts_and_backs_off(subject: Subject) -> None:
    run, store = subject.enqueue("short"), subject.store("a")
    for number in (1, 2):
        (claimed,) = await claim(store)
        assert (claimed.number, claimed.attempts) == (number - 1, number - 1)
        await write(store, failed(claimed))
        assert subject.view(run) == View("waiting", "a", b"null", number=number, attempts=number)
        await subject.pass_time(BACKOFF)
        assert await store.promote(10) == 1
    (claimed,) = await claim(store)
    await write(store, failed(claimed))
    assert (subject.view(run), subject.outcomes(run)) == (View("failed"), ["failed"] * 3)


@scenario
async def a_released_run_is_pending_at_once_and_charged_nothing(subject: Subject) -> None:
    run, store = subject.enqueue("short"), subject.store("a")
    (claimed,) = await claim(store)
    await write(store, failed(claimed, Observation.NEVER_STARTED, Attempt("released")))
    assert subject.view(run) == View("pending", "a", b"null", releases=1)
    assert subject.outcomes(run) == []


@scenario
async def children_are_enqueued_by_the_hand_over_or_not_at_all(subject: Subject) -> None:
    parent, store = subject.enqueue("parent"), subject.store("a")
    (claimed,) = await claim(store)
    child = subject.child(claimed.token)
    fenced_out = finished(claimed)._replace(token=claimed.token + 1000)
    assert await store.finish([fenced_out], [{**child, "parent": claimed.token + 1000}]) == set()
    assert await claim(store) == []
    assert await store.finish([finished(claimed)], [child]) == {claimed.token}
    assert names(await claim(store)) == [child["id"]]
    assert subject.view(parent).state == "succeeded"


# Leases


@scenario
async def a_renewed_lease_does_not_expire(subject: Subject) -> None:
    run, store = subject.enqueue("short"), subject.store("a")
    (claimed,) = await claim(store)
    for _ in range(3):
        await subject.pass_time(LEASE / 2)
        assert await store.renew([Renewal(run, claimed.token, LEASE, None)]) == {run}
        assert await subject.store("b").reap(10) == []
    await subject.pass_time(LEASE + 1)
    assert await subject.store("b").reap(10) == [(run, claimed.token, None)]


@scenario
async def a_reaped_run_waits_as_a_suspect(subject: Subject) -> None:
    run = subject.enqueue("short")
    await claim(subject.store("dead"))
    await subject.pass_time(LEASE + 1)
    store = subject.store("a")
    await store.reap(10)
    assert subject.view(run) == View("waiting", "a", b"null", number=1, crashes=1)
    assert await store.promote(10) == 0
    await subject.pass_time(1.5)
    assert await store.promote(10) == 1
    assert subject.outcomes(run) == ["lost"]


@scenario
async def a_run_is_quarantined_by_its_last_crash(subject: Subject) -> None:
    run, store = subject.enqueue("short"), subject.store("a")
    finals = []
    for _ in range(POLICY.max_crashes):
        assert names(await claim(subject.store("dead"))) == [run]
        await subject.pass_time(LEASE + 1)
        finals += [final for _, _, final in await store.reap(10)]
        await subject.pass_time(10)
        await store.promote(10)
    assert finals == [None, None, "failed"]
    assert (subject.view(run), subject.outcomes(run)) == (View("failed"), ["lost"] * 3)


@scenario
async def a_locked_run_is_reaped_later(subject: Subject) -> None:
    run = subject.enqueue("short")
    await claim(subject.store("dead"))
    await subject.pass_time(LEASE + 1)
    with subject.row_locked(run):
        assert await subject.store("a").reap(10) == []
    assert len(await subject.store("a").reap(10)) == 1


@scenario
async def unknown_runs_are_released(subject: Subject) -> None:
    """Of a claim whose answer was lost."""
    runs, store = [subject.enqueue("short") for _ in range(2)], subject.store("a")
    await claim(store)
    await store.release_unknown({runs[0]})
    assert [(subject.view(run).state, subject.view(run).releases) for run in runs] == [
        ("in_progress", 0),
        ("pending", 1),
    ]


# Cancel


@scenario
async def a_cancelled_run_that_is_not_in_progress_ends_at_once(subject: Subject) -> None:
    pending, waiting = subject.enqueue("short"), subject.enqueue("short", delay=30)
    for run in (pending, waiting):
        subject.cancel(run)
        assert subject.view(run) == View("cancelled")
    assert await claim(subject.store("a")) == []


@scenario
async def a_cancelled_run_in_progress_can_only_end_as_cancelled(subject: Subject) -> None:
    run, store = subject.enqueue("chain"), subject.store("a")
    (claimed,) = await claim(store)
    assert await store.cancel_requests() == []
    subject.cancel(run)
    assert await store.cancel_requests() == [(run, claimed.token, 0, 0)]
    assert await write(store, finished(claimed), advanced(claimed), failed(claimed)) == set()
    assert await store.renew([Renewal(run, claimed.token, LEASE, None)]) == set()
    assert await store.owned([run]) == {(run, claimed.token): True}
    end = failed(claimed, Observation.CANCELLED, tried("cancelled"))
    assert await write(store, end) == {claimed.token}
    assert (subject.view(run), subject.outcomes(run)) == (View("cancelled"), ["cancelled"])


@scenario
async def a_cancelled_run_without_supervisor_is_closed_by_the_reaper(subject: Subject) -> None:
    run = subject.enqueue("short")
    (claimed,) = await claim(subject.store("dead"))
    subject.cancel(run)
    await subject.pass_time(LEASE + 1)
    assert await subject.store("a").reap(10) == [(run, claimed.token, "cancelled")]
    assert (subject.view(run), subject.outcomes(run)) == (View("cancelled"), ["cancelled"])


# Concurrency keys


async def holder_and_next(subject: Subject) -> tuple[AnyStore, Claimed, str]:
    """A claimed run that holds a key, and the run that waits for the key."""
    store = subject.store("a")
    _, waiting = subject.enqueue("keyed", RED), subject.enqueue("keyed", RED)
    await store.join_key_queue(10)
    (holder,) = await claim(store)
    return store, holder, waiting


@scenario
async def a_key_admits_as_many_runs_as_its_limit(subject: Subject) -> None:
    runs, store = [subject.enqueue("keyed", GREEN) for _ in range(4)], subject.store("a")
    assert await store.join_key_queue(10) == 4
    assert [subject.view(run).holds_key for run in runs] == [True, True, False, False]
    first, second = await claim(store)
    await write(store, failed(first, Observation.FAIL))
    assert [subject.view(run).state for run in runs] == ["failed", "in_progress", "pending", "waiting"]
    assert second.holds_key


@scenario
async def a_key_is_kept_while_a_run_backs_off(subject: Subject) -> None:
    store, claimed, second = await holder_and_next(subject)
    first = claimed.run
    await write(store, failed(claimed))
    assert (subject.view(first).state, subject.view(first).holds_key) == ("waiting", True)
    assert subject.view(second).state == "waiting"
    await subject.pass_time(BACKOFF)
    assert await store.promote(10) == 1
    assert names(await claim(store)) == [first]


@scenario
async def a_step_with_the_same_key_keeps_it_and_one_with_another_gives_it_up(subject: Subject) -> None:
    store, claimed, second = await holder_and_next(subject)
    first = claimed.run
    await write(store, advanced(claimed))
    assert (subject.view(first).state, subject.view(first).step, subject.view(second).state) == (
        "pending",
        "b",
        "waiting",
    )
    (claimed,) = await claim(store)
    await write(store, advanced(claimed))
    assert (subject.view(first).state, subject.view(first).step) == ("pending", "c"), "the other key was free"
    assert subject.view(second).holds_key


@scenario
async def a_run_without_a_key_may_need_one_for_its_next_step(subject: Subject) -> None:
    holder, run = subject.enqueue("keyed", RED), subject.enqueue("swap", RED)
    store = subject.store("a")
    await store.join_key_queue(10)
    held, claimed = await claim(store)
    await write(store, advanced(claimed))
    assert (subject.view(run).state, subject.view(run).holds_key) == ("waiting", False)
    await write(store, failed(held, Observation.FAIL))
    assert subject.view(holder).state == "failed"
    assert (subject.view(run).state, subject.view(run).holds_key) == ("pending", True)


@scenario
async def a_delayed_run_joins_the_line_when_it_is_due(subject: Subject) -> None:
    late, store = subject.enqueue("keyed", RED, delay=30), subject.store("a")
    early = subject.enqueue("keyed", RED)
    assert await store.join_key_queue(10) == 1
    (claimed,) = await claim(store)
    assert claimed.run == early
    await write(store, failed(claimed, Observation.FAIL))
    assert subject.view(late).state == "waiting"
    await subject.pass_time(31)
    assert await store.join_key_queue(10) == 1
    assert subject.view(late).holds_key


@scenario
async def a_cancel_passes_the_key_on(subject: Subject) -> None:
    first, second = subject.enqueue("keyed", RED), subject.enqueue("keyed", RED)
    await subject.store("a").join_key_queue(10)
    subject.cancel(first)
    assert (subject.view(first).state, subject.view(second).state) == ("cancelled", "pending")


@scenario
async def a_quarantine_passes_the_key_on(subject: Subject) -> None:
    first, second = subject.enqueue("keyed", RED), subject.enqueue("keyed", RED)
    store = subject.store("a")
    await store.join_key_queue(10)
    for _ in range(POLICY.max_crashes):
        assert names(await claim(subject.store("dead"))) == [first]
        await subject.pass_time(LEASE + 1)
        await store.reap(10)
        await subject.pass_time(10)
        await store.promote(10)
    assert (subject.view(first).state, subject.view(second).holds_key) == ("failed", True)


@scenario
async def a_locked_key_is_granted_later(subject: Subject) -> None:
    store, claimed, second = await holder_and_next(subject)
    first = claimed.run
    with subject.key_locked(RED.decode()):
        await write(store, failed(claimed, Observation.FAIL))
        assert (subject.view(first).state, subject.view(second).state) == ("failed", "waiting")
        assert store.locked_keys
    await store.join_key_queue(10)
    assert not store.locked_keys
    assert subject.view(second).holds_key


@scenario
async def a_sweep_grants_a_key_that_was_left_free(subject: Subject) -> None:
    """A process was killed after it gave up the key and before it granted it."""
    store, claimed, second = await holder_and_next(subject)
    first = claimed.run
    with subject.key_locked(RED.decode()):
        await write(store, failed(claimed, Observation.FAIL))
    assert subject.view(first).state == "failed"
    await subject.store("b").sweep_keys(("", ""), 10)
    assert subject.view(second).holds_key


# Due times


@scenario
async def the_next_due_time_is_known(subject: Subject) -> None:
    store = subject.store("a")
    assert await store.seconds_until_due() is None
    subject.enqueue("short", delay=300)
    subject.enqueue("short", delay=100)
    due = await store.seconds_until_due()
    assert due is not None
    assert 90 < due <= 100
    await subject.pass_time(200)
    assert await store.promote(10) == 1
    assert names(await claim(store)) != []
