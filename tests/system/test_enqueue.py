"""What an enqueue stores in the run."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
from apps import blocking, clients
from db import LANE, Connection, claim, insert, row_of, value, with_store
from harness import Supervisor, eventually

from underway import Underway
from underway.client.run import Run
from underway.definition.manifest import Policy
from underway.postgres.supervisor_store import Lanes

Start = Callable[..., Supervisor]


def test_policies_are_read_at_the_claim_and_not_at_enqueue(any_database: str) -> None:
    """So a fix in code applies to runs that are already queued."""
    us = uuid4()
    with psycopg.connect(any_database, autocommit=True) as connection:
        run = insert(connection)
        written = row_of(connection, "run", run)
        assert written is not None
        assert not [name for name in written if "retry" in name or "timeout" in name or "memory" in name]
        for policy in (Policy(lease=timedelta(seconds=30)), Policy(lease=timedelta(seconds=900), max_crashes=7)):
            before = value(connection, "select clock_timestamp()")
            assert len(claim(any_database, lanes=Lanes([(LANE, policy)]), owner=us)) == 1
            after = value(connection, "select clock_timestamp()")
            claimed_at = value(connection, "select lease_expires_at from underway.run") - policy.lease
            assert before <= claimed_at <= after
            assert value(connection, "select max_crashes from underway.run") == policy.max_crashes
            with_store(any_database, lambda store: store.release_unknown([]), us)


def test_options_given_at_enqueue_override_those_of_the_step(
    bind: Callable[[Underway], Underway], connection: Connection
) -> None:
    bind(clients.app)
    given: Any = {"delay": timedelta(minutes=5), "priority": 4, "keep": timedelta(days=15)}
    for run in (clients.placed.enqueue(1, **given), *clients.placed.enqueue_many([1, 2, 3], **given)):
        columns = "queue, priority, keep, round(extract(epoch from due_at - created_at))"
        query = f"select {columns} from underway.run where id = %s"
        assert connection.execute(query, [run.id]).fetchall() == [("slow", 4, timedelta(days=15), 300)]


def test_a_new_run_begins_at_the_first_step_while_others_are_at_the_second(
    bind: Callable[[Underway], Underway], connection: Connection, start_supervisor: Start, stage: Path
) -> None:
    """A process that has just handled a second step must not place new runs there."""
    bind(blocking.app)

    def placed(run: Run[Any]) -> tuple[Any, ...]:
        query = "select step, queue, priority, input, keep from underway.run where id = %s"
        (found,) = connection.execute(query, [run.id])
        return tuple(found)

    runs = [blocking.two.enqueue("a")]
    assert placed(runs[0]) == ("first", "one", 1, "a", timedelta(days=14))
    supervisor = start_supervisor("blocking", "--procs", "1", env={"FOLDER": str(stage)})
    eventually((stage / "a began").exists)
    assert placed(runs[0]) == ("last", "two", 9, ["a"], timedelta(days=1))
    runs += [blocking.two.enqueue("b"), *blocking.two.enqueue_many(["c"])]
    runs.append(blocking.app.get_run(value(connection, "select underway.enqueue('two', '\"d\"')")))
    for run, name in zip(runs[1:], "bcd", strict=True):
        assert placed(run) == ("first", "one", 1, name, timedelta(days=14))
    for name in "abcd":
        (stage / name).touch()
    assert [run.result(20) for run in runs] == [["a"], ["b"], ["c"], ["d"]]
    for run in runs:
        assert [(attempt.step, attempt.number) for attempt in run.attempts()] == [("first", 1), ("last", 1)]
    assert supervisor.process.poll() is None
