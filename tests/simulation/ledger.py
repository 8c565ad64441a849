"""What was committed for each run and each token, and the promises that a commit can break."""

from collections.abc import Collection

from simulation.app import JOBS
from simulation.clockwork import Clockwork
from underway.postgres.transitions import Attempt


class Broken(AssertionError):
    """A promise was broken."""


class Ledger:
    def __init__(self, loop: Clockwork) -> None:
        self.job: dict[str, str] = {}  # of every run
        self.finished: dict[str, str] = {}
        self.attempts: dict[tuple[str, int], str] = {}
        self.succeeded: dict[str, list[str]] = {}  # the steps of each run
        self.left: dict[int, str] = {}  # how each token lost its run
        self.cancels: set[str] = set()  # runs that were cancelled while they were in progress
        self.announced: set[int] = set()  # tokens whose start a worker has reported
        self.executed: set[int] = set()  # tokens whose step a worker has started
        self.produced: dict[int, str] = {}  # and how the step ended
        self.blameless: set[int] = set()  # tokens whose workers died of the signal that stopped their supervisor
        self.children: dict[int, list[str]] = {}  # the runs enqueued by an attempt with cx.enqueue
        self._loop = loop

    # What happens to runs

    def enqueued(self, run: str, job: str) -> None:
        if run in self.job:
            raise Broken(f"{run}: enqueued twice")
        self.job[run] = job
        self.succeeded[run] = []

    def cancel_requested(self, run: str) -> None:
        self.cancels.add(run)

    def closed(self, run: str, state: str) -> None:
        if run in self.cancels and state != "cancelled":
            raise Broken(f"{run}: {state} after it was cancelled")
        self.finished[run] = state

    # What happens to attempts

    def ended(self, run: str, step: str, token: int, attempt: Attempt) -> None:
        """A supervisor has written the end of an attempt."""
        outcome = attempt.outcome
        self._loop.note("committed", run, token, outcome)
        if attempt.started is None:
            self.released(token, "as never started")
            return
        if token not in self.executed and outcome in ("succeeded", "timed_out"):
            raise Broken(f"{run} {token}: {outcome}, but no worker has started it")
        produced = self.produced.get(token)
        if outcome == "succeeded" and produced not in ("next", "done", "committed"):
            raise Broken(f"{run} {token}: succeeded, but its worker has produced {produced}")
        if outcome == "crashed" and produced in ("next", "done"):
            raise Broken(f"{run} {token}: crashed, but its worker has produced {produced}")
        if outcome == "crashed" and token in self.blameless:
            raise Broken(f"{run} {token}: crashed, but it was stopped with its supervisor")
        self.write(run, step, token, outcome)

    def write(self, run: str, step: str, token: int, outcome: str) -> None:
        if (run, token) in self.attempts:
            raise Broken(f"{run} {token}: {outcome} and {self.attempts[run, token]}")
        self.attempts[run, token] = outcome
        self.left.setdefault(token, outcome)
        if outcome == "succeeded":
            if step in self.succeeded[run]:
                raise Broken(f"{run}: step {step} has succeeded twice")
            self.succeeded[run].append(step)

    def released(self, token: int, how: str) -> None:
        if token in self.executed:
            raise Broken(f"{token}: released {how}, but its worker has started it")
        self.left.setdefault(token, "released")

    # At the end

    def audit(self, live: Collection[str]) -> None:
        for run, state in self.finished.items():
            if state == "succeeded" and self.succeeded[run] != list(JOBS[self.job[run]]):
                raise Broken(f"{run} has succeeded with the steps {self.succeeded[run]}")
        if lost := self.job.keys() - self.finished.keys() - set(live):
            raise Broken(f"lost: {sorted(lost)[:5]}")
        if wrong := [run for run in self.cancels if self.finished.get(run) != "cancelled"]:
            raise Broken(f"cancelled, but ended otherwise: {sorted(wrong)[:5]}")
        self._audit_children()

    def _audit_children(self) -> None:
        """Children exist if and only if the end of the attempt that enqueued them was committed."""
        outcomes = {token: outcome for (_, token), outcome in self.attempts.items()}
        for token, children in self.children.items():
            committed = outcomes.get(token) == "succeeded"
            there = [child for child in children if child in self.job]
            if there != (children if committed else []):
                raise Broken(f"of {children}, asked for by {token}, which was {outcomes.get(token)}, exist {there}")
