"""`cx.tx` of steps that run inline."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import psycopg
from psycopg import Rollback
from psycopg.pq import TransactionStatus

from underway.errors import InsideStep
from underway.postgres import client_queries
from underway.wire.messages import Assignment
from underway.worker.outcome import Outcome
from underway.worker.transaction import Transactions


class CallerTransaction(Transactions):
    """`cx.tx` on the test's connection, in the test's transaction: each attempt has a savepoint."""

    def __init__(self, connection: psycopg.Connection[Any] | None) -> None:
        self._given = connection
        self._savepoint = ExitStack()
        self.token: int | None = None

    def open(self, token: int, check: Callable[[], None]) -> psycopg.Connection[Any]:
        check()
        if self._given is None:
            raise InsideStep(
                "cx.tx has no database here: pass a connection, run_inline(job, value, conn=connection), or use "
                "drain(app)"
            )
        if self.token is None:
            if not self._given.autocommit and self._given.info.transaction_status == TransactionStatus.IDLE:
                # Any query begins the test's transaction. Without one, the savepoint would be the transaction, and
                # would commit.
                client_queries.clock(self._given)
            self._savepoint.enter_context(self._given.transaction())
            self.token = token
        return self._given

    def end(self, task: Assignment, outcome: Outcome) -> Outcome:
        assert self._given is not None
        self.token = None
        aborted = self._given.info.transaction_status == TransactionStatus.INERROR
        if outcome.hands_over and not aborted:
            self._savepoint.close()
            return outcome
        self._savepoint.__exit__(Rollback, Rollback(), None)
        if outcome.hands_over:
            raise InsideStep("a PostgreSQL error aborted cx.tx but the step continued; re-raise it")
        return outcome

    def close(self) -> None:
        pass
