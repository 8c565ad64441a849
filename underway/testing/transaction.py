"""`cx.tx` of steps that run inline."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import psycopg
from psycopg import Rollback
from psycopg.pq import TransactionStatus

from underway.errors import InsideStep
from underway.postgres import client_queries
from underway.wire import messages
from underway.worker.executor import Outcome
from underway.worker.transaction import Transactions


class GivenTransaction(Transactions):
    """`cx.tx` on a connection of the test's: each attempt in a savepoint."""

    def __init__(self, given: psycopg.Connection[Any] | None) -> None:
        self._given = given
        self._savepoint = ExitStack()
        self.token: int | None = None

    def open(self, token: int, check: Callable[[], None]) -> psycopg.Connection[Any]:
        check()
        if self._given is None:
            raise InsideStep(
                "cx.tx has no database here: give it yours, run_inline(job, value, conn=connection), or use drain(app)"
            )
        if self.token is None:
            if not self._given.autocommit and self._given.info.transaction_status == TransactionStatus.IDLE:
                client_queries.clock(self._given)  # begins the transaction, or the savepoint would be one, and commit
            self._savepoint.enter_context(self._given.transaction())
            self.token = token
        return self._given

    def end(self, task: messages.Assignment, outcome: Outcome) -> Outcome:
        assert self._given is not None
        self.token = None
        aborted = self._given.info.transaction_status == TransactionStatus.INERROR
        if outcome[0] in ("next", "done") and not aborted:
            self._savepoint.close()
            return outcome
        self._savepoint.__exit__(Rollback, Rollback(), None)
        if outcome[0] in ("next", "done"):
            raise InsideStep("an error of Postgres has aborted cx.tx, and the step went on: let the error pass")
        return outcome

    def close(self) -> None:
        pass
