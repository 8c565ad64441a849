"""Replays a stored attempt with its original input. Everything that it does through its context is rolled back."""

import socket
from contextlib import closing
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from underway.app import Underway
from underway.definition.manifest import Lane
from underway.errors import UnderwayError
from underway.postgres.inspection import StoredAttempt
from underway.postgres.transitions import AdvanceRun, FinishRun
from underway.testing.local_worker import LocalWorker, first_task
from underway.wire.messages import Assignment, Welcome
from underway.worker.outcome import Outcome
from underway.worker.transaction import Transactions

# No attempt has this token. By the token a supervisor finds the transaction that it terminates; it must not find ours.
_NO_TOKEN = 0


class Replayed(NamedTuple):
    """The row and the runs that a worker would have handed over, and the exception that has left the step, if any."""

    row: FinishRun | AdvanceRun
    spawned: list[dict[str, Any]]
    raised: BaseException | None


class RolledBackTransactions(Transactions):
    """`cx.tx` as in a worker, but rolled back where a worker commits."""

    def end(self, task: Assignment, outcome: Outcome) -> Outcome:
        self._connection = self.token = None
        assert self._session is not None
        if outcome.hands_over:
            self._session.rehearse(task.token)
        else:
            self._session.roll_back()
        return outcome


def replay(app: Underway, run_id: UUID, stored: StoredAttempt) -> Replayed:
    """Run the attempt in this process, with `cx.tx` in the app's database.

    Raises UnderwayError if the app has no such step, and the errors of its calls if the database cannot be reached.
    """
    assert stored.input is not None
    job = app.jobs.get(stored.job)
    specs = [] if job is None else [step.spec for step in job.compiled if stored.step in step.spec.names]
    if not specs:
        raise UnderwayError(f"this app has no job {stored.job!r} with the step {stored.step!r} of the attempt")
    lane = Lane(stored.queue, stored.job, stored.step)
    task = first_task(run_id, _NO_TOKEN, lane, specs[0], stored.input.encode())
    task.number, task.scheduled_at = stored.number, stored.scheduled_at
    with closing(LocalWorker(app.registry, RolledBackTransactions)) as worker:
        worker.transactions.welcome = Welcome(str(uuid4()), socket.gethostname(), app.database.checked_conninfo())
        row, spawned = worker.run(task)
        assert row is not None
        return Replayed(row, spawned, worker.raised)
