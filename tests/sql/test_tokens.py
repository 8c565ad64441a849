"""Tokens keep growing on a server that has the rows but not the sequence, after logical replication or a restore."""

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID

import psycopg
import pytest
from apps import extremes
from db import Connection, insert, insert_held, open_store, value
from harness import Supervisor, eventually
from test_plans import ExplainingConnection

from underway import Status, Underway
from underway.ids import new_id
from underway.postgres import migrate

FORGET = "select setval('underway.token', 1, false)"
NEXT = "select nextval('underway.token')"
ATTEMPT = (
    "insert into underway.attempt (run_id, token, attempt_number, finished_at, step, outcome)"
    " values (%s, %s, 1, now(), 'work', 'failed')"
)


def recover_by_migration(database: str) -> None:
    with psycopg.connect(database) as connection:
        assert migrate.migrate(connection) == []


def recover_by_supervisor(database: str) -> None:
    async def main() -> None:
        async with open_store(database) as store:
            await store.stop_requested()

    asyncio.run(main())


@pytest.mark.parametrize("recover", [recover_by_migration, recover_by_supervisor])
@pytest.mark.parametrize("source", ["pending", "in progress", "attempt"])
def test_the_next_token_is_greater_than_those_of_the_rows(
    any_database: str, recover: Callable[[str], None], source: str
) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        if source == "attempt":
            connection.execute(ATTEMPT, [new_id(), 2000])
        elif source == "pending":
            insert(connection, token=2000)
        else:
            insert_held(connection, new_id(), token=2000)
        connection.execute(FORGET)
        recover(any_database)
        token = value(connection, NEXT)
        assert token > 2000
        recover(any_database)
        assert value(connection, NEXT) == token + 1, "no further than necessary"


@pytest.mark.parametrize("recover", [recover_by_migration, recover_by_supervisor])
def test_a_token_that_was_never_drawn_does_not_exhaust_the_sequence(
    database: str, connection: Connection, recover: Callable[[str], None]
) -> None:
    insert(connection, token=2**63 - 1)
    connection.execute(ATTEMPT, [new_id(), 2**63 - 1])
    insert(connection, token=2000)
    connection.execute(FORGET)
    recover(database)
    assert 2000 < value(connection, NEXT) < 2**62


def test_the_token_sequence_only_advances(connection: Connection) -> None:
    connection.execute("select underway.advance_token_sequence(500)")
    connection.execute("select underway.advance_token_sequence(400)")
    assert value(connection, NEXT) == 501


def test_a_second_attempt_is_recorded_on_a_server_without_the_sequence(
    connection: Connection, bind: Callable[[Underway], Underway], start_supervisor: Callable[..., Supervisor]
) -> None:
    """(It had the token of the first attempt, and the step was repeated until its crashes were used up.)"""
    app = bind(extremes.app)
    runs = [
        insert(connection, job="plain", step="work", token=token, attempts=1, attempt_number=1)
        for token in range(1, 21)
    ]
    for token, one in enumerate(runs, 1):
        connection.execute(ATTEMPT, [one, token])
    connection.execute(FORGET)
    start_supervisor("extremes", "--procs", "1")
    eventually(lambda: all(app.get_run(UUID(one)).status() == Status.SUCCEEDED for one in runs), within=90)
    assert [[attempt.outcome for attempt in app.get_run(UUID(one)).attempts()] for one in runs] == 20 * [
        ["failed", "succeeded"]
    ]


def test_the_largest_token_is_found_without_reading_every_row(any_database: str) -> None:
    with psycopg.connect(any_database, autocommit=True) as connection:
        connection.execute(
            "insert into underway.attempt (run_id, token, attempt_number, finished_at, step, outcome)"
            " select gen_random_uuid(), n, 1, now(), 'step', 'succeeded' from generate_series(1, 100000) n"
        )
        connection.execute(
            "insert into underway.run (id, job, step, queue, keep, due_at, rank, state, token, input)"
            " select gen_random_uuid(), 'job', 'step', 'queue', '1 day', now(), now(), 'pending', n, '1'"
            " from generate_series(1, 100000) n"
        )
        connection.execute("analyze underway.run, underway.attempt")

        async def touched() -> Any:
            session = ExplainingConnection(any_database, ", analyze, buffers")
            try:
                await session.fetch("recover_tokens")
            finally:
                await session.close()
            plan = session.plans["recover_tokens"]
            return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]

        # Two thousand rows on random pages.
        assert asyncio.run(touched()) < 8000
