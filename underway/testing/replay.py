"""One stored attempt again: it sees what it saw, and nothing of what it does through its context is kept."""

import socket
from contextlib import closing
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from underway import wire
from underway.app import Underway
from underway.errors import UnderwayError
from underway.manifest import Lane
from underway.postgres.endings import Continue, Finish
from underway.postgres.people import StoredAttempt
from underway.testing.process import LocalWorker, first_task
from underway.worker.execute import Outcome
from underway.worker.transaction import Transactions

# No attempt has it. By the token of its transaction a supervisor finds what it terminates, which must not be ours.
_NO_TOKEN = 0


class Replayed(NamedTuple):
    """How it ended, what it wanted to enqueue, and the exception that left the step, if one has."""

    row: Finish | Continue
    spawned: list[dict[str, Any]]
    raised: BaseException | None


class UndoneTransactions(Transactions):
    """`cx.tx` as a worker has it, but rolled back where that would commit."""

    def end(self, task: wire.Task, outcome: Outcome) -> Outcome:
        self._connection = self.token = None
        assert self._own is not None
        if outcome[0] in ("next", "done"):
            self._own.rehearse(task.token)
        else:
            self._own.roll_back()
        return outcome


def replay(app: Underway, run_id: UUID, stored: StoredAttempt) -> Replayed:
    """Run it in this process, with `cx.tx` in the app's database.

    Raises UnderwayError if the app has no such step, and what its calls raise for a database that is not there.
    """
    assert stored.input is not None
    job = app.jobs.get(stored.job)
    specs = [] if job is None else [step.spec for step in job.compiled if stored.step in step.spec.names]
    if not specs:
        raise UnderwayError(f"this app has no step {stored.step!r} of a job {stored.job!r}, at which the run stands")
    lane = Lane(stored.queue, stored.job, stored.step)
    task = first_task(run_id, _NO_TOKEN, lane, specs[0], stored.input.encode())
    task.number, task.scheduled_at = stored.number, stored.scheduled_at
    with closing(LocalWorker(app)) as worker:
        transactions = worker.executor.transactions = UndoneTransactions(worker.outbox, worker.guard)
        transactions.welcome = wire.Welcome(str(uuid4()), socket.gethostname(), app._checked_url())
        row, spawned = worker.run(task)
        assert row is not None
        return Replayed(row, spawned, worker.raised)
