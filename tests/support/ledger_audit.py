"""The audit of apps/ledger.py: each transfer that was enqueued must have moved its money exactly once."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from apps import ledger
from chaos_report import Count
from harness import Supervisor, outcomes, states
from psycopg import sql

from underway.supervisor.exit_codes import ExitCode

# Each of the two steps of a transfer enqueues two receipts.
RUNS_PER_TRANSFER = 1 + 2 * 2


class Books:
    """What was enqueued in one database, as recorded by the client."""

    def __init__(self, url: str, rng: random.Random) -> None:
        self.url = url
        self.rng = rng
        self.transfers = 0
        self.parcels = 0
        self._moved: Counter[int] = Counter()

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.url, autocommit=True, connect_timeout=5)

    @property
    def runs(self) -> int:
        """Including the runs that transfers enqueue."""
        return self.transfers * RUNS_PER_TRANSFER + self.parcels

    def enqueue(self, count: int, parcels: int = 0) -> None:
        """Enqueue this many transfers. The database must be available, so that their commit is certain."""
        transfers = []
        for number in range(self.transfers, self.transfers + count):
            debtor, creditor = self.rng.sample(range(ledger.ACCOUNTS), 2)
            transfers.append(ledger.Transfer(number, self.rng.randint(1, 100), debtor, creditor))
        with self.connect() as connection, connection.transaction():
            ledger.transfers.enqueue_many(transfers, conn=connection)
            ledger.parcels.enqueue_many(range(self.parcels, self.parcels + parcels), conn=connection)
        self.parcels += parcels
        self.transfers += count
        for transfer in transfers:
            self._moved[transfer.debtor] -= transfer.amount
            self._moved[transfer.creditor] += transfer.amount

    def left(self) -> int:
        """The number of live runs."""
        with self.connect() as connection:
            return sum(connection.execute("select count(*) from underway.run").fetchone() or (0,))

    def settle(self, within: float, say: Callable[[str], None] = lambda _: None) -> None:
        """Wait until the supervisors have finished all runs."""
        began = said = time.monotonic()
        with self.connect() as connection:
            while connection.execute("select from underway.run limit 1").fetchall():
                now = time.monotonic()
                left = connection.execute("select state, due_at, lease_expires_at, r::text from underway.run r limit 3")
                assert now < began + within, f"not done within {within} s: {states(connection)}, {left.fetchall()}"
                if now > said + 5:
                    said = now
                    say(f"settling: {self.progress()}")
                time.sleep(0.05)

    def audit(self, count: Count) -> None:
        """Check that each transfer has moved its money once: two entries of the successful attempts, and its receipts.

        Also check that each step of each run has succeeded once.
        """
        with self.connect() as connection:
            repeated = connection.execute(
                "select run_id, step from underway.attempt where outcome = 'succeeded'"
                " group by run_id, step having count(*) > 1"
            ).fetchall()
            found, ended = states(connection), outcomes(connection)
            effects = connection.execute("select count(*), count(distinct (run, step)) from entry").fetchone()
            assert effects is not None
            count(
                runs=self.runs,
                lost=self.runs - found.get("succeeded", 0),
                steps_twice=len(repeated),
                effects=effects[0],
                effects_lost=self.transfers * 2 - effects[1],
                effects_twice=effects[0] - effects[1],
                crashes=ended.get("crashed", 0),
                leases_lapsed=ended.get("lost", 0),
            )
            assert found == {"succeeded": self.runs}, ended
            assert repeated == []
            delivered = connection.execute("select result from underway.finished_run where job = 'parcels'").fetchall()
            assert sorted(result for (result,) in delivered) == [(number + 1) * 2 for number in range(self.parcels)]
            succeeded = connection.execute(
                "select run_id, step, attempt_number from underway.attempt"
                " where outcome = 'succeeded' and step in ('debit', 'credit')"
            ).fetchall()
            entries = connection.execute("select run, step, attempt from entry").fetchall()
            balances = dict(connection.execute("select id, balance from account").fetchall())
            assert len(entries) == self.transfers * 2
            assert sorted(entries) == sorted(succeeded), outcomes(connection)
            assert balances == {account: self._moved[account] for account in range(ledger.ACCOUNTS + 1)}

    def progress(self) -> str:
        """One line, also during an outage."""
        with suppress(psycopg.Error), self.connect() as connection:
            counted = (f"{count:,} {state}" for state, count in sorted(states(connection).items()))
            ended = (f"{count:,} {outcome}" for outcome, count in sorted(outcomes(connection).items()))
            return f"runs {', '.join(counted)}; attempts {', '.join(ended)}"
        return "the database is away"


@contextmanager
def open_books(url: str, rng: random.Random, *, migrate: bool = False) -> Iterator[Books]:
    """Create the accounts in a database, and bind `ledger.app` to it."""
    ledger.app.database.named = url
    try:
        if migrate:
            ledger.app.migrate()
        books = Books(url, rng)
        with books.connect() as connection:
            connection.execute(ledger.TABLES)
            # All money passes through one account, so deadlocks are frequent. Each would block for a second by default.
            database = sql.Identifier(connection.info.dbname)
            connection.execute(sql.SQL("alter database {} set deadlock_timeout = '100ms'").format(database))
        yield books
    finally:
        ledger.app.close()
        ledger.app.database.named = None


@contextmanager
def serving(start: Callable[..., Supervisor], url: str, count: Count, procs: int = 2) -> Iterator[list[Supervisor]]:
    """Two supervisors that must survive all faults and stop cleanly."""
    supervisors = [start("ledger", "--database", url, "--procs", f"{procs}") for _ in range(2)]
    for supervisor in supervisors:
        supervisor.until("serving")  # before this it may still exit
    yield supervisors
    count(peak_mib=max(supervisor.peak_mib for supervisor in supervisors))
    below = [process for supervisor in supervisors for process in supervisor.workers()]
    for supervisor in supervisors:
        assert supervisor.process.poll() is None, supervisor.log[-3000:]
        supervisor.send(signal.SIGTERM)
    assert [supervisor.wait() for supervisor in supervisors] == [ExitCode.CLEAN] * 2
    left = [process.pid for process in below if process.is_running()]
    count(left_behind=len(left))
    assert left == []
