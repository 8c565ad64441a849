"""`cx.tx` of the step that runs: opened when it is first used, ended with the attempt."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

from underway.errors import InsideStep
from underway.wire import messages
from underway.worker.channel import Outbox
from underway.worker.interrupts import Interrupts

if TYPE_CHECKING:
    import psycopg

    from underway.postgres.step_transaction import StepTransactions
    from underway.worker.executor import Outcome


class Transactions:
    """Nothing is imported or opened before a step asks."""

    def __init__(self, outbox: Outbox, guard: Interrupts) -> None:
        self._outbox = outbox
        self._guard = guard
        self._own: StepTransactions | None = None
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._pid = os.getpid()
        self._opening = threading.Lock()
        self.welcome: messages.Welcome | None = None
        self.token: int | None = None  # of the attempt that has opened one
        self._ended: int | None = None  # the token of the attempt whose hand-over has begun

    def open(self, token: int, check: Callable[[], None]) -> "psycopg.Connection[tuple[Any, ...]]":
        """The connection of this attempt, in its transaction. `check` raises if the attempt has ended."""
        with self._opening:  # threads of a step that asked at once got one each, and all but one were never committed
            if token == self._ended:
                raise InsideStep("cx.tx belongs to an attempt whose step has returned; nothing can be added to it")
            # In this order: of a thread and its step, which is just ending, one sees the other.
            before, self.token = self.token, token
            try:
                check()
            except BaseException:
                self.token = before
                raise
            if before != token or self._connection is None:
                from underway.postgres.step_transaction import StepTransactions

                if self._own is None:
                    assert self.welcome is not None
                    self._own = StepTransactions(self.welcome.database, UUID(self.welcome.owner), self.welcome.host)
                self._outbox.send(messages.Transaction(token))
                self._connection = self._own.begin(token)
            return self._connection

    def end(self, task: messages.Assignment, outcome: "Outcome") -> "Outcome":
        """Commit what the step wrote with its hand-over, or roll it back. Raises what has refused a hand-over."""
        ending, placement, _, spawned, seconds, cpu_seconds, peak_rss, payload = outcome
        with self._opening:  # a thread that the step has left behind may be at it
            connection, self._connection, self.token, self._ended = self._connection, None, None, task.token
        if self._own is None:
            return outcome  # it was refused, to a thread that came too late
        if ending not in ("next", "done") or connection is None:  # None: it could not be opened, and the step went on
            self._own.roll_back()
            return outcome
        from underway.postgres.transitions import Attempt, succeed

        now = time.monotonic()
        attempt = Attempt("succeeded", None, now - seconds, now, self._pid, cpu_seconds, peak_rss)
        row = succeed(task, attempt, placement, payload)
        try:
            children = [{**spawn, "parent": task.token} for spawn in spawned]
            self._own.commit(row, children, self._interruptible(task.token))
        except BaseException:
            self._own.roll_back()
            raise
        return "committed", placement, None, [], seconds, cpu_seconds, peak_rss, b""

    @contextmanager
    def _interruptible(self, token: int) -> Iterator[None]:
        """Allow interrupts although the step has returned, because its hand-over waits for another transaction."""
        try:
            self._guard.begin(token)
            yield
        finally:
            self._guard.end()

    def close(self) -> None:
        """Between two attempts."""
        if self._own is not None:
            self._own.close()
