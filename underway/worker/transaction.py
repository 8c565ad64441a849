"""`cx.tx` of the running step: opened when the step first uses it, ended with the attempt."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

from underway.errors import InsideStep
from underway.wire.messages import Assignment, Transaction, Welcome
from underway.worker.channel import Outbox
from underway.worker.interrupts import Interrupts
from underway.worker.outcome import Outcome

if TYPE_CHECKING:
    import psycopg

    from underway.postgres.step_transaction import StepTransactions


class Transactions:
    """Imports psycopg and connects only when a step asks for its transaction."""

    def __init__(self, outbox: Outbox, interrupts: Interrupts) -> None:
        self._outbox = outbox
        self._interrupts = interrupts
        self._session: StepTransactions | None = None
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self.welcome: Welcome | None = None
        self.token: int | None = None  # of the attempt that has opened a transaction
        self._ended: int | None = None  # the token of the attempt whose hand-over has begun

    def open(self, token: int, check: Callable[[], None]) -> "psycopg.Connection[tuple[Any, ...]]":
        """The connection of this attempt, in its transaction. `check` raises if the attempt has ended."""
        # Threads of a step that asked at the same time got one transaction each, and only one of them was committed.
        with self._lock:
            if token == self._ended:
                raise InsideStep("cx.tx belongs to an attempt whose step has returned; nothing can be added to it")
            # The token is set before the check: so either this thread sees that the step has ended, or the step, when
            # it ends, sees that a transaction is open.
            before, self.token = self.token, token
            try:
                check()
            except BaseException:
                self.token = before
                raise
            if before != token or self._connection is None:
                self._connection = self._begin(token)
            return self._connection

    def _begin(self, token: int) -> "psycopg.Connection[tuple[Any, ...]]":
        from underway.postgres.step_transaction import StepTransactions

        if self._session is None:
            assert self.welcome is not None
            self._session = StepTransactions(self.welcome.database, UUID(self.welcome.owner), self.welcome.host)
        self._outbox.send(Transaction(token))
        return self._session.begin(token)

    def end(self, task: Assignment, outcome: Outcome) -> Outcome:
        """Commit the step's writes together with its hand-over, or roll them back.

        Raises the reason if the hand-over is refused.
        """
        with self._lock:  # a thread that the step has left behind may be in `open`
            connection, self._connection, self.token, self._ended = self._connection, None, None, task.token
        if self._session is None:
            return outcome  # `open` has refused a thread that came too late
        # There is no connection if it could not be opened, and the step handed over all the same.
        if not outcome.hands_over or connection is None:
            self._session.roll_back()
            return outcome
        self._commit(self._session, task, outcome)
        return Outcome("committed", b"", outcome.next_step, usage=outcome.usage)

    def _commit(self, session: "StepTransactions", task: Assignment, outcome: Outcome) -> None:
        from underway.postgres.transitions import Attempt, succeed

        now = time.monotonic()
        seconds, cpu_seconds, peak_rss = outcome.usage
        attempt = Attempt("succeeded", None, now - seconds, now, self._pid, cpu_seconds, peak_rss)
        row = succeed(task, attempt, outcome.next_step, outcome.payload)
        try:
            spawned = [{**spawn, "parent": task.token} for spawn in outcome.spawned]
            session.commit(row, spawned, self._interruptible(task.token))
        except BaseException:
            session.roll_back()
            raise

    @contextmanager
    def _interruptible(self, token: int) -> Iterator[None]:
        """Allow interrupts although the step has returned, because its hand-over waits for another transaction."""
        try:
            self._interrupts.enable(token)
            yield
        finally:
            self._interrupts.disable()

    def close(self) -> None:
        """Close the connection. Called between two attempts."""
        if self._session is not None:
            self._session.close()
