"""What an ending means. One table, and the arithmetic of the three counters.

| charge   | counter                 | what follows                                                          |
|----------|-------------------------|-----------------------------------------------------------------------|
| nothing  | none                    | the run goes to its next step, or it succeeded                         |
| attempt  | attempts                | back-off by the retry policy, or failed when it is used up             |
| failure  | attempts                | failed at once: the step said so                                       |
| crash    | crashes                 | back-off as a suspect, or failed as quarantined after max_crashes      |
| release  | releases                | pending again at once; nobody is to blame                              |
| cancel   | none                    | the run is closed as cancelled: somebody has asked for that            |
"""

import random
from enum import StrEnum
from typing import NamedTuple

from underway.postgres.endings import Attempt, Continue, Finish
from underway.supervisor.task import Task


class Seen(StrEnum):
    """What a supervisor saw of an attempt."""

    NEXT = "next"
    DONE = "done"
    RETRY = "retry"
    FAIL = "fail"
    INTERRUPTED_TIMEOUT = "interrupted: timeout"
    INTERRUPTED_SHUTDOWN = "interrupted: shutdown"
    KILLED_TIMEOUT = "killed: timeout"
    KILLED_MEMORY = "killed: memory"
    KILLED_SHUTDOWN = "killed: shutdown"
    KILLED_FOR_ANOTHER = "killed: for the task before"
    KILLED_LEASE = "killed: lease about to lapse"
    DIED = "died"
    OUT_OF_MEMORY = "out of memory"
    NEVER_STARTED = "never started"
    UNSTORABLE = "result cannot be stored"
    TOO_LARGE = "input too large for a worker"
    CANCELLED = "cancelled"
    KILLED_CANCEL = "killed: cancelled"


class Charge(StrEnum):
    NOTHING = "nothing"
    ATTEMPT = "attempt"
    FAILURE = "failure"
    CRASH = "crash"
    RELEASE = "release"
    CANCEL = "cancel"


class Verdict(NamedTuple):
    outcome: str
    charge: Charge


VERDICTS: dict[Seen, Verdict] = {
    Seen.NEXT: Verdict("succeeded", Charge.NOTHING),
    Seen.DONE: Verdict("succeeded", Charge.NOTHING),
    Seen.RETRY: Verdict("failed", Charge.ATTEMPT),
    Seen.FAIL: Verdict("failed", Charge.FAILURE),
    Seen.INTERRUPTED_TIMEOUT: Verdict("timed_out", Charge.ATTEMPT),
    Seen.INTERRUPTED_SHUTDOWN: Verdict("released", Charge.RELEASE),
    Seen.KILLED_TIMEOUT: Verdict("timed_out", Charge.ATTEMPT),
    Seen.KILLED_MEMORY: Verdict("out_of_memory", Charge.CRASH),
    Seen.KILLED_SHUTDOWN: Verdict("released", Charge.RELEASE),
    Seen.KILLED_FOR_ANOTHER: Verdict("released", Charge.RELEASE),
    Seen.KILLED_LEASE: Verdict("released", Charge.RELEASE),
    Seen.DIED: Verdict("crashed", Charge.CRASH),
    Seen.OUT_OF_MEMORY: Verdict("out_of_memory", Charge.CRASH),
    Seen.NEVER_STARTED: Verdict("released", Charge.RELEASE),
    Seen.UNSTORABLE: Verdict("failed", Charge.ATTEMPT),
    Seen.TOO_LARGE: Verdict("failed", Charge.FAILURE),
    Seen.CANCELLED: Verdict("cancelled", Charge.CANCEL),
    Seen.KILLED_CANCEL: Verdict("cancelled", Charge.CANCEL),
}
# Two endings have no verdict of ours, because nothing may be written any more: a task whose lease or run is lost
# (the reaper has charged it as a crash, outcome `lost`), and one that succeeded in a
# transaction of its own, which committed its attempt itself.


def settle(
    task: Task, seen: Seen, attempt: Attempt, rng: random.Random, retry_after: float | None = None
) -> Finish | Continue:
    """The row for an attempt that did not succeed, by the charge that VERDICTS names."""
    charge = VERDICTS[seen].charge
    policy = task.step.policy
    attempts = task.attempts + (charge in (Charge.ATTEMPT, Charge.FAILURE))
    crashes = task.crashes + (charge is Charge.CRASH)
    if charge is Charge.CANCEL:
        return Finish(task.run, task.token, "cancelled", None, attempts, crashes, attempt)
    if charge is Charge.FAILURE or (charge is Charge.ATTEMPT and attempts >= policy.retry.max_attempts):
        return Finish(task.run, task.token, "failed", None, attempts, crashes, attempt)
    if charge is Charge.CRASH and crashes >= policy.max_crashes:
        evidence = attempt._replace(error=f"quarantined after {_times(crashes)}: {attempt.error}")
        return Finish(task.run, task.token, "failed", None, attempts, crashes, evidence)
    delay = 0.0
    if charge is Charge.ATTEMPT:
        delay = policy.retry.wait(attempts, rng) if retry_after is None else retry_after
    elif charge is Charge.CRASH:
        delay = crash_delay(crashes)
    return Continue(
        run=task.run,
        token=task.token,
        step=task.lane.step,
        queue=None,
        priority=None,
        keep=None,
        concurrency_key=None,
        concurrency_limit=None,
        payload=None,
        delay=delay,
        number=task.number + (attempt.started is not None),
        attempts=attempts,
        crashes=crashes,
        releases=task.releases + (charge is Charge.RELEASE),
        ran_step=task.lane.step,
        ran_number=task.attempt,
        attempt=attempt,
    )


def what_follows(row: Finish | Continue, charge: Charge) -> str:
    """For the log, behind the outcome of an attempt that did not succeed: what becomes of its run."""
    if charge in (Charge.RELEASE, Charge.CANCEL):
        return ""
    if isinstance(row, Continue):
        return f", again in {row.delay:.1f} s"
    return ", its run is quarantined" if charge is Charge.CRASH else ", its run has failed"


def crash_delay(crashes: int) -> float:
    """Seconds a suspect waits: 1, 2, 4, ... at most 60. The reaper's statement computes the same."""
    return float(min(60, 2 ** min(crashes - 1, 6)))


def _times(crashes: int) -> str:
    return "1 crash" if crashes == 1 else f"{crashes} crashes"
