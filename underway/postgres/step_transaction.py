"""The transaction of a step: the connection behind `cx.tx`, and the hand-over as its last statement."""

import contextlib
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, NoReturn, TypeVar
from uuid import UUID

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus

from underway.errors import Fail, InsideStep, UnderwayError
from underway.postgres.arrays import UUIDs
from underway.postgres.cursors import OwnClientCursor, OwnCursor
from underway.postgres.queries import statements
from underway.postgres.transitions import AdvanceRun, FinishRun, continue_parameters, finish_parameters

RV = TypeVar("RV")

_NO_INTERRUPTS = contextlib.nullcontext()


def transaction_name(token: int) -> str:
    """The application_name of an attempt's session in pg_stat_activity."""
    return f"underway {token}"


class StepConnection(psycopg.Connection[tuple[Any, ...]]):
    """Lent to a step for one transaction, which the step must not end."""

    returned = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._pid = os.getpid()

    def commit(self) -> None:
        raise InsideStep("cx.tx.commit() inside a step: return from the step, and it is committed with its hand-over")

    def rollback(self) -> None:
        raise InsideStep(
            "cx.tx.rollback() inside a step: raise an exception, and all of it is rolled back; "
            "for a part of it use: with cx.tx.transaction()"
        )

    def close(self) -> None:
        if not self.returned and os.getpid() == self._pid:  # else it belongs to the next step, or to the parent process
            super().close()

    def cursor(self, *args: Any, **options: Any) -> Any:
        self._refuse_child()  # before taking the lock: a thread of the parent may have held it at the fork
        return super().cursor(*args, **options)

    def wait(self, gen: PQGen[RV], *args: Any, **options: Any) -> RV:
        """Every exchange with the server passes through this method."""
        self._refuse_child()
        if self.returned:
            raise InsideStep("this connection was lent to an attempt that has ended; read cx.tx again in each step")
        return super().wait(gen, *args, **options)

    def _refuse_child(self) -> None:
        """Raise InsideStep in a child process. (Parent and child shared the socket and read each other's answers.)"""
        if os.getpid() != self._pid:
            raise InsideStep(
                "cx.tx was used in a child process of the step, which shares the connection with its parent: use it in "
                "the step's own process, or open a separate connection in the child"
            )

    def renewed(self) -> "StepConnection":
        """The same session as a new object for the next step. A thread that this step has left cannot use it."""
        with self.lock:  # a thread holds it during each exchange with the server
            self.returned = True
        fresh = StepConnection(self.pgconn)
        fresh._prepared = self._prepared  # the session still has them
        fresh.prepare_threshold = None
        return fresh

    def __del__(self, *_: Any) -> None:
        """Without psycopg's warning: another object uses the session, or it ends with the worker."""


class StepTransactions:
    """The step transactions of one worker, one at a time, on a connection that stays open and is reopened if it breaks.

    Hand-overs are written in the name of the supervisor, which owns the runs.
    """

    def __init__(self, conninfo: str, owner: UUID, host: str) -> None:
        self._conninfo = conninfo
        self._owner = owner
        self._host = host
        self._connection: StepConnection | None = None

    def begin(self, token: int) -> StepConnection:
        """Raises psycopg.OperationalError if it cannot connect."""
        if self._connection is not None and self._connection.info.transaction_status == TransactionStatus.IDLE:
            with contextlib.suppress(psycopg.OperationalError):  # it broke while it was idle
                return self._begin_on(self._connection, token)
        self.close()
        self._connection = StepConnection.connect(self._conninfo, prepare_threshold=None)
        return self._begin_on(self._connection, token)

    def _begin_on(self, connection: StepConnection, token: int) -> StepConnection:
        # Merged by the client, since SET takes no parameters.
        OwnClientCursor(connection).execute(
            statements()["mark_transaction"], {"token": token, "name": transaction_name(token)}
        )
        return connection

    def commit(
        self,
        row: FinishRun | AdvanceRun,
        spawned: list[dict[str, Any]],
        interruptible: AbstractContextManager[None] = _NO_INTERRUPTS,
    ) -> None:
        """Hand over, and commit the hand-over together with the step's writes.

        If this raises, nothing is committed, unless the connection breaks during COMMIT: then only the attempt row
        tells. `interruptible` is entered while the hand-over waits for another transaction. Raises Fail if the step
        itself made the hand-over impossible.
        """
        self._check(row.token)
        if isinstance(row, FinishRun):
            statement, parameters = "finish_runs", finish_parameters([row], spawned, self._owner, self._host)
        else:
            statement, parameters = "continue_runs", continue_parameters([row], spawned, self._owner, self._host)
        if not self._fetch(statement, parameters):
            # The run is no longer ours, or it is locked: briefly by our own supervisor, which renews the lease, or by a
            # transaction that may in turn wait for a lock of this one. So wait inside Postgres, where its deadlock
            # detector sees it: two steps that had cancelled each other's run polled here until both were killed.
            with interruptible:
                locked = self._fetch("lock_run", {"id": row.run, "token": row.token, "owner": self._owner})
            if not locked or not self._fetch(statement, parameters):
                self._refuse(row)
        assert self._connection is not None
        super(StepConnection, self._connection).commit()
        self._rest()

    def _refuse(self, row: FinishRun | AdvanceRun) -> NoReturn:
        """Roll back, which also undoes the step's own changes to its run, and raise the reason for the refusal."""
        self.roll_back()
        if self._connection is not None and (row.run, row.token, False) in self._fetch(
            "owned_runs", {"ids": UUIDs([row.run]), "owner": self._owner}
        ):
            raise Fail(
                "the step has cancelled its own run through cx.tx, or written to its row: it hands over in the same "
                "transaction, so neither could be committed. All of it is rolled back, and the run was not cancelled. "
                "Raise Fail to end the run, or cancel it without conn="
            )
        raise UnderwayError(
            "the run was cancelled, or taken over by another supervisor after its lease expired; the step's writes "
            "through cx.tx are rolled back"
        )

    def rehearse(self, token: int) -> None:
        """Raise what `commit` would raise, also for deferred constraints; then roll back."""
        try:
            self._check(token)
            assert self._connection is not None
            self._connection.execute(statements()["check_constraints"])
        finally:
            self.roll_back()

    def _check(self, token: int) -> None:
        """Raise unless the transaction that was begun for the step is still open and can be committed."""
        assert self._connection is not None
        status = self._connection.info.transaction_status
        if self._connection.closed:
            raise UnderwayError("cx.tx was closed, by the step or by a broken connection; all of it is rolled back")
        if status == TransactionStatus.ACTIVE:
            raise InsideStep("cx.tx is still busy: the step returned without reading a query's rows to their end")
        if status == TransactionStatus.INERROR:
            raise InsideStep(
                "a PostgreSQL error aborted cx.tx but the step continued; re-raise it, or wrap the statements that may "
                "fail in: with cx.tx.transaction()"
            )
        if status == TransactionStatus.IDLE or self._fetch("transaction_token")[0][0] != str(token):
            raise InsideStep(
                "the step has ended the transaction of cx.tx with a COMMIT or ROLLBACK of its own, so it cannot be "
                "committed together with the hand-over: leave that to the step's return"
            )

    def roll_back(self) -> None:
        """Roll back in any state. Never raises."""
        if self._connection is None:
            return
        if self._connection.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
            with contextlib.suppress(psycopg.Error):
                super(StepConnection, self._connection).rollback()
        if self._connection.info.transaction_status == TransactionStatus.IDLE:
            self._rest()
        else:
            self.close()

    def close(self) -> None:
        """A query of an interrupted step may continue for a moment, until the supervisor terminates its session."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _rest(self) -> None:
        """Undo the step's changes to the session, and take it away from the step."""
        assert self._connection is not None
        self._connection = self._connection.renewed()
        try:
            self._connection.autocommit = True
            OwnClientCursor(self._connection).execute(statements()["forget_step"])
            self._connection.autocommit = False
        except psycopg.Error:  # also if a thread of the step has begun a transaction meanwhile
            self._connection.close()

    def _fetch(self, statement: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Not prepared: a generic plan may have been made while the table was empty."""
        assert self._connection is not None
        with OwnCursor(self._connection) as cursor:
            return cursor.execute(statements()[statement], parameters, prepare=False).fetchall()
