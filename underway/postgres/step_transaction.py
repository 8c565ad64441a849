"""The transaction of a step: what `cx.tx` gives, and how the hand-over becomes the last thing in it."""

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
    """What pg_stat_activity calls the transaction of an attempt, as its application_name."""
    return f"underway {token}"


class StepConnection(psycopg.Connection[tuple[Any, ...]]):
    """Lent to a step for the length of one transaction, which is not the step's to end."""

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
        if not self.returned and os.getpid() == self._pid:  # otherwise it belongs to the next step, or to the parent
            super().close()

    def cursor(self, *args: Any, **options: Any) -> Any:
        self._refuse_child()  # before the lock, which a thread of the parent may have held at the fork
        return super().cursor(*args, **options)

    def wait(self, gen: PQGen[RV], *args: Any, **options: Any) -> RV:
        """All that talks to the server comes through here."""
        self._refuse_child()
        if self.returned:
            raise InsideStep("this connection was lent to an attempt that has ended; take cx.tx anew in each step")
        return super().wait(gen, *args, **options)

    def _refuse_child(self) -> None:
        """Raise InsideStep in a child process. (Parent and child shared the socket and read each other's answers.)"""
        if os.getpid() != self._pid:
            raise InsideStep(
                "cx.tx was used in a child process of the step, which shares the connection with its parent: use it in "
                "the step's own process, or open a separate connection in the child"
            )

    def anew(self) -> "StepConnection":
        """The same session for the next step. A thread that this one has left behind must not write into it there."""
        with self.lock:  # held by a thread for each thing it says to the server
            self.returned = True
        fresh = StepConnection(self.pgconn)
        fresh._prepared = self._prepared  # the session has them still
        fresh.prepare_threshold = None
        return fresh

    def __del__(self, *_: Any) -> None:
        """Without psycopg's warning: the session goes on in another one's hands, or goes with its worker."""


class StepTransactions:
    """Those of one worker, one after the other, on a connection that stays open and is opened again when it broke.

    It hands over in the name of the supervisor that owns the runs.
    """

    def __init__(self, conninfo: str, owner: UUID, host: str) -> None:
        self._conninfo = conninfo
        self._owner = owner
        self._host = host
        self._connection: StepConnection | None = None

    def begin(self, token: int) -> StepConnection:
        """Raises psycopg.OperationalError if there is no connection to be had."""
        if self._connection is not None and self._connection.info.transaction_status == TransactionStatus.IDLE:
            with contextlib.suppress(psycopg.OperationalError):  # it broke while nobody used it
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
        """Hand over, and commit that with what the step has written.

        If this raises, nothing is committed, but for a connection that breaks during COMMIT itself: then only the
        attempt's row can tell. `interruptible` is entered while the hand-over waits for another transaction. Raises
        Fail if the step itself made the hand-over impossible.
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
        """Refuse what `commit` would refuse, deferred constraints among it; then roll back."""
        try:
            self._check(token)
            assert self._connection is not None
            self._connection.execute(statements()["check_constraints"])
        finally:
            self.roll_back()

    def _check(self, token: int) -> None:
        """Whether what the step wrote is still in the transaction that was begun for it, and can be committed."""
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
        """Whatever state it is in; never raises."""
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
        """A query of an interrupted step may go on for the moment: our supervisor will terminate its backend."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _rest(self) -> None:
        """What a step has changed about the session is not the next one's."""
        assert self._connection is not None
        self._connection = self._connection.anew()
        try:
            self._connection.autocommit = True
            OwnClientCursor(self._connection).execute(statements()["forget_step"])
            self._connection.autocommit = False
        except psycopg.Error:  # among them that of a thread that was quicker, and has begun something
            self._connection.close()

    def _fetch(self, statement: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Planned for these very parameters: a plan for any may have been made while the table was empty."""
        assert self._connection is not None
        with OwnCursor(self._connection) as cursor:
            return cursor.execute(statements()[statement], parameters, prepare=False).fetchall()
