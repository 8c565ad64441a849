"""What the end of an attempt means: one table, and the arithmetic of the three counters.

| charge   | counter                 | what follows                                                          |
|----------|-------------------------|-----------------------------------------------------------------------|
| nothing  | none                    | the run goes to its next step, or it succeeded                         |
| attempt  | attempts                | back-off by the retry policy, or failed when it is used up             |
| failure  | attempts                | failed at once: the step said so                                       |
| crash    | crashes                 | back-off as a suspect, or failed as quarantined after max_crashes      |
| release  | releases                | pending again at once, at no cost                                      |
| cancel   | none                    | the run ends as cancelled, as requested                                |
"""

import random
from enum import StrEnum
from typing import NamedTuple

from underway.postgres.transitions import AdvanceRun, Attempt, FinishRun
from underway.supervisor.tasks.task import Task


class Observation(StrEnum):
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
    KILLED_LEASE = "killed: lease about to expire"
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


VERDICTS: dict[Observation, Verdict] = {
    Observation.NEXT: Verdict("succeeded", Charge.NOTHING),
    Observation.DONE: Verdict("succeeded", Charge.NOTHING),
    Observation.RETRY: Verdict("failed", Charge.ATTEMPT),
    Observation.FAIL: Verdict("failed", Charge.FAILURE),
    Observation.INTERRUPTED_TIMEOUT: Verdict("timed_out", Charge.ATTEMPT),
    Observation.INTERRUPTED_SHUTDOWN: Verdict("released", Charge.RELEASE),
    Observation.KILLED_TIMEOUT: Verdict("timed_out", Charge.ATTEMPT),
    Observation.KILLED_MEMORY: Verdict("out_of_memory", Charge.CRASH),
    Observation.KILLED_SHUTDOWN: Verdict("released", Charge.RELEASE),
    Observation.KILLED_FOR_ANOTHER: Verdict("released", Charge.RELEASE),
    Observation.KILLED_LEASE: Verdict("released", Charge.RELEASE),
    Observation.DIED: Verdict("crashed", Charge.CRASH),
    Observation.OUT_OF_MEMORY: Verdict("out_of_memory", Charge.CRASH),
    Observation.NEVER_STARTED: Verdict("released", Charge.RELEASE),
    Observation.UNSTORABLE: Verdict("failed", Charge.ATTEMPT),
    Observation.TOO_LARGE: Verdict("failed", Charge.FAILURE),
    Observation.CANCELLED: Verdict("cancelled", Charge.CANCEL),
    Observation.KILLED_CANCEL: Verdict("cancelled", Charge.CANCEL),
}
# Two ends have no verdict here, because nothing may be written any more: a lost run (the reaper has charged it as a
# crash, with the outcome `lost`), and a step that succeeded in its own transaction, which has recorded the attempt.


def decide(
    task: Task, seen: Observation, attempt: Attempt, rng: random.Random, retry_after: float | None = None
) -> FinishRun | AdvanceRun:
    """The row for an attempt that did not succeed, by the charge that VERDICTS names."""
    charge = VERDICTS[seen].charge
    policy = task.step.policy
    attempts = task.attempts + (charge in (Charge.ATTEMPT, Charge.FAILURE))
    crashes = task.crashes + (charge is Charge.CRASH)
    if charge is Charge.CANCEL:
        return FinishRun(task.run, task.token, "cancelled", None, attempts, crashes, attempt)
    if charge is Charge.FAILURE or (charge is Charge.ATTEMPT and attempts >= policy.retry.max_attempts):
        return FinishRun(task.run, task.token, "failed", None, attempts, crashes, attempt)
    if charge is Charge.CRASH and crashes >= policy.max_crashes:
        evidence = attempt._replace(error=f"quarantined after {_times(crashes)}: {attempt.error}")
        return FinishRun(task.run, task.token, "failed", None, attempts, crashes, evidence)
    delay = 0.0
    if charge is Charge.ATTEMPT:
        delay = policy.retry.wait(attempts, rng) if retry_after is None else retry_after
    elif charge is Charge.CRASH:
        delay = crash_delay(crashes)
    return AdvanceRun(
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


def what_follows(row: FinishRun | AdvanceRun, charge: Charge) -> str:
    """For the log, after the outcome of an attempt that did not succeed: what happens to its run."""
    if charge in (Charge.RELEASE, Charge.CANCEL):
        return ""
    if isinstance(row, AdvanceRun):
        return f", again in {row.delay:.1f} s"
    return ", its run is quarantined" if charge is Charge.CRASH else ", its run has failed"


def crash_delay(crashes: int) -> float:
    """Seconds that a suspect waits: 1, 2, 4, ... at most 60. The reaper's statement computes the same."""
    return float(min(60, 2 ** min(crashes - 1, 6)))


def _times(crashes: int) -> str:
    return "1 crash" if crashes == 1 else f"{crashes} crashes"
