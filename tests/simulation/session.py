"""A connection that breaks as the real one does: statements and answers are lost or late."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import psycopg

from simulation.database import Database
from simulation.schedules import Schedules
from underway.postgres.reconnecting import ANSWER_SECONDS, STATEMENT_SECONDS, DatabaseUnavailable

T = TypeVar("T")

# The shares of statements that are lost before or after they take effect, or take effect late.
LOST_BEFORE = LOST_AFTER = 0.004
LOST_AND_LATE = 0.002
LATEST = 8.0


class ReconnectingConnection:
    def __init__(self, database: Database, schedules: Schedules) -> None:
        self.on_notify: Callable[[str], None] | None = None
        self.on_broken: Callable[[], None] | None = None
        self.opened = 0
        self.away_until = 0.0
        self.sent_at = self.leased_from = 0.0
        self._seconds = self._transfer = 0.0  # the current statement's timeout, and its answer's transfer time
        self._database = database
        self._schedules = schedules
        self._loop = database.loop
        self._lock = asyncio.Lock()
        self._open = False
        self._listening = False

    def cut(self, seconds: float) -> None:
        """Cut the connection to the database for this long."""
        self.away_until = self._loop.time() + seconds
        self._break()
        if self.on_broken is not None and self._loop.rng.random() < 0.5:
            self.on_broken()

    # The interface for supervisors

    async def open(self) -> None:
        async with self._lock:
            if not self._open and self._is_away():
                raise DatabaseUnavailable("away")
            self._opened()

    async def fetch(self, statement: str, parameters: Any = None) -> list[Any]:
        """The few statements that are not methods of the store."""
        return await self.do(statement, lambda: self._answer(statement, parameters))

    async def do(self, name: str, effect: Callable[[], T], *, sent: int = 0, seconds: float = STATEMENT_SECONDS) -> T:
        """`sent` is the size of the parameters. `effect` passes the size of the answer to `carry`."""
        rng = self._loop.rng
        async with self._lock:
            await self._open_patiently()
            self.sent_at = self.leased_from = self._loop.time()
            answer: asyncio.Future[T] = self._loop.create_future()
            self._seconds, self._transfer = seconds, 0.0
            sending = sent / self._database.bytes_per_second
            there, back = self._database.lateness() + sending, self._database.lateness()
            if there > seconds + ANSWER_SECONDS:
                self._loop.happen(seconds + ANSWER_SECONDS, lambda: self._lose(answer, f"{name}, which is too slow"))
                return await answer
            fate = rng.random() if self._database.lossy else 1.0
            # A server process that has not noticed the broken connection may still execute the statement later.
            late = rng.uniform(0, LATEST) if fate < LOST_AND_LATE else 0.0
            fate -= LOST_AND_LATE
            if late:
                self._loop.happen(there, lambda: self._lose(answer, name))
                self._loop.happen(there + late, lambda: self._unheard(effect))
            elif fate < LOST_BEFORE:
                self._loop.happen(there, lambda: self._lose(answer, name))
            else:
                lost = fate < LOST_BEFORE + LOST_AFTER
                self._loop.happen(there, lambda: self._arrive(answer, name, effect, back, lost=lost))
            try:
                return await answer
            except DatabaseUnavailable:
                await asyncio.sleep(rng.uniform(0.05, 0.2))
                raise

    def carry(self, size: int) -> None:
        """Transfer an answer of `size` bytes. Past its deadline the statement is cancelled without any effect."""
        self._transfer = size / self._database.bytes_per_second
        if self._transfer > self._seconds:
            raise psycopg.errors.QueryCanceled("canceling statement due to statement timeout")

    def heard(self, payload: str) -> None:
        if self._open and self._listening and self.on_notify is not None:
            self.on_notify(payload)

    # The fate of a statement

    def _arrive(self, answer: "asyncio.Future[Any]", name: str, effect: Any, back: float, *, lost: bool) -> None:
        if self._is_away():
            self._lose(answer, name)
            return
        try:
            result = effect()
        except psycopg.errors.QueryCanceled as error:
            cancelled = DatabaseUnavailable(str(error))
            self._loop.happen(self._seconds + back, lambda: self._refuse(answer, cancelled))
            return
        except psycopg.Error as error:
            refused = error
            self._loop.happen(back, lambda: self._refuse(answer, refused))
            return
        back += self._transfer
        if lost:
            self._loop.happen(back, lambda: self._lose(answer, name))
        else:
            self._loop.happen(back, lambda: self._return(answer, name, result))

    def _refuse(self, answer: "asyncio.Future[Any]", error: Exception) -> None:
        if not answer.done():
            answer.set_exception(error)

    def _return(self, answer: "asyncio.Future[Any]", name: str, result: Any) -> None:
        if self._is_away():
            self._lose(answer, name)
        elif not answer.done():
            answer.set_result(result)

    def _lose(self, answer: "asyncio.Future[Any]", name: str) -> None:
        self._loop.note("connection lost at", name)
        self._break()
        if not answer.done():
            answer.set_exception(DatabaseUnavailable("connection lost"))

    def _unheard(self, effect: Callable[[], Any]) -> None:
        with contextlib.suppress(psycopg.Error):
            effect()

    def _answer(self, statement: str, parameters: Any) -> list[Any]:
        match statement:
            case "upcoming_schedules":
                return self._schedules.upcoming(parameters)
            case "fire_schedule":
                return self._schedules.fire(parameters)
            case "listen":
                self._listening = True
                if self.heard not in self._database.listeners:
                    self._database.listeners.append(self.heard)
            case "notify_self":
                self._loop.happen(self._database.lateness(), lambda: self.heard(parameters["nonce"]))
        return []

    # The connection

    async def _open_patiently(self) -> None:
        while not self._open:
            if not self._is_away():
                self._opened()
            else:
                await asyncio.sleep(self._loop.rng.uniform(0.05, 1))

    def _opened(self) -> None:
        if not self._open:
            self._open = True
            self.opened += 1

    def _break(self) -> None:
        self._open = self._listening = False

    def _is_away(self) -> bool:
        return self._loop.time() < max(self.away_until, self._database.away_until)
