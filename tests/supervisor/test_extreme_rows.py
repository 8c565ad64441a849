"""Rows with extreme values in each column, written by each role: other runs succeed, and supervisors keep running.

CHAOS_SEED decides which combinations are tried.
"""

import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from apps import extremes
from chaos_settings import SEED
from db import Connection, finish, insert, insert_held, value, with_store
from harness import Supervisor, eventually
from psycopg import sql
from test_roles import Roles, connect, roles

from underway import Status
from underway.testing import using_database

__all__ = ["roles"]  # a fixture

Start = Callable[..., Supervisor]

OWNER = uuid4()
YESTERDAY = sql.SQL("now() - interval '1 day'")
RANDOM_ROWS = 400
FAR = ["9999-12-31 00:00+00", "9999-12-31 00:00:01+00", "294276-12-31 23:59:59+00", "infinity"]
PAST = ["1000-01-01 00:00+00", "0999-12-31 00:00+00", "4714-11-24 00:00+00 BC", "-infinity"]
SPANS = [
    *("0", "365000 days", "365001 days", "-1 day", "178000000 years", "-178000000 years", "1 month"),
    *("292000 years -105110000 days", "-100 years 36500 days", "2147483647 days", "999 years"),
]
NAMES = ["", "x" * 200, "x" * 201, "\N{DUCK}" * 200, "x" * 100_000, "shutdown\n\x1b[31m", "work"]
KEYS = ["", "x" * 400, "x" * 401, "\N{DUCK}" * 400, "x" * 100_000, "key"]
COUNTS = [-(2**31), -1, 0, 1, 2_000_000_000, 2**31 - 1]
INPUTS = [
    *("null", '"\\u0000"', '"\\ud800"', "1e999999", "[1e308, -0, 5e-324]", '{"a": 1, "a": 2}', "\n[ 1\t]\n", "{"),
    *("[" * 5_000 + "]" * 5_000, '"' + 2**23 * "x" + '"', "[" + 1_150_000 * "1e308," + "1]"),
]
# The columns that the documented client may insert, and those of a client with a grant on the whole table.
CLIENT: dict[str, list[Any]] = {
    "id": [str(UUID(int=0)), str(UUID(int=2**128 - 1))],
    "job": [*NAMES, "plain", "keyed"],
    "step": NAMES,
    "queue": [*NAMES, "default"],
    "priority": [-(2**15), -1, 1, 2**15 - 1, 2**15],
    "keep": SPANS,
    "due_at": [*PAST, *FAR],
    "rank": [*PAST, *FAR],
    "state": ["pending", "waiting", "in_progress", "succeeded", ""],
    "unique_key": KEYS,
    "concurrency_key": KEYS,
    "concurrency_limit": [-(2**15), -1, 0, 1, 2**15 - 1],
    "input": INPUTS,
}
TABLE: dict[str, list[Any]] = {
    **CLIENT,
    "token": [-(2**63), -1, 0, 2**62],
    "created_at": [*PAST, *FAR],
    "scheduled_at": [*PAST, *FAR],
    "lease_expires_at": [*PAST, *FAR],
    "owner": [str(uuid4()), "supervisor"],
    **dict.fromkeys(("attempt_number", "attempts", "crashes", "releases", "max_crashes"), COUNTS),
    "cancel_requested": [True, False],
    "progress": ['"\\u0000"', "[" * 5_000 + "]" * 5_000],
}
# A queue, a key and a step that are served, unless a row says otherwise.
PLAIN = {"job": "plain", "step": "work", "state": "pending"}
KEYED = {"job": "keyed", "step": "work", "state": "waiting", "concurrency_key": "key", "concurrency_limit": 1}
HELD = {"job": "plain", "step": "work", "state": "in_progress", "owner": "supervisor", "lease_expires_at": "yesterday"}
LAPSED = {**HELD, "owner": str(uuid4()), "crashes": 2}


def rows(columns: dict[str, list[Any]], bases: list[dict[str, Any]], finished: str) -> list[dict[str, Any]]:
    """Rows with a single extreme value, for each value of each column; then rows with several at random."""
    columns = {**columns, "id": [*columns["id"], finished]}
    rng = random.Random(SEED)
    found = [{**base, name: extreme} for base in bases for name, values in columns.items() for extreme in values]
    for _ in range(RANDOM_ROWS):
        chosen = rng.sample(sorted(columns), rng.randint(2, 6))
        found.append({**rng.choice(bases), **{name: rng.choice(columns[name]) for name in chosen}})
    rng.shuffle(found)
    # A run that no supervisor can run may hold its key forever, so it gets a key of its own.
    return [row if _is_served(row) else {**row, "concurrency_key": "another"} for row in found]


def _is_served(row: dict[str, Any]) -> bool:
    place = row["job"], row["step"], row.get("queue", "default")
    return row.get("concurrency_key") != "key" or place in (("plain", "work", "default"), ("keyed", "work", "default"))


def write(connection: Connection, row: dict[str, Any], supervisor: UUID) -> str | None:
    """Insert a row. Returns the SQLSTATE if it was rejected, else None."""
    row = {name: supervisor if (name, given) == ("owner", "supervisor") else given for name, given in row.items()}
    try:
        insert(connection, **row)
    except psycopg.Error as error:
        return error.sqlstate or str(error)
    return None


@pytest.fixture
def served(roles: Roles, start_supervisor: Start) -> Supervisor:
    """A supervisor with the rights of the schema's owner that has registered itself and its jobs."""
    supervisor = start_supervisor("extremes", "--procs", "2", "--database", roles.owner)
    supervisor.until("serving")
    return supervisor


def other_runs_succeed(database: str, supervisor: Supervisor) -> None:
    with using_database(extremes.app, database):
        runs = [*extremes.plain.enqueue_many(range(20)), *(extremes.keyed.enqueue(number) for number in range(5))]
        eventually(
            lambda: all(run.status() == Status.SUCCEEDED for run in runs) or supervisor.process.poll(), within=90
        )
        assert supervisor.process.poll() is None, supervisor.log[-3000:]
        assert Counter(run.status() for run in runs) == {Status.SUCCEEDED: 25}
        assert "cannot connect to the database" not in supervisor.log
        assert "Traceback" not in supervisor.log


@pytest.mark.parametrize("granted", ["client", "table"])
def test_no_row_harms_other_runs(roles: Roles, served: Supervisor, start_supervisor: Start, granted: str) -> None:
    with connect(roles.owner) as owner, connect(roles.client) as client:
        columns: dict[str, list[Any]] = CLIENT
        bases: list[dict[str, Any]] = [PLAIN, KEYED]
        if granted == "table":
            owner.execute(sql.SQL("grant insert on underway.run to {}").format(sql.Identifier(client.info.user)))
            columns, bases = TABLE, [PLAIN, KEYED, HELD, LAPSED]
        with using_database(extremes.app, roles.owner):
            done = extremes.plain.enqueue(1)
            done.result(timeout=60)
        supervisor = value(owner, "select id from underway.supervisor")
        answers = Counter(write(client, row, supervisor) for row in rows(columns, bases, str(done.id)))
        assert answers[None] > 100
        # Values out of range, invalid JSON, too large for an index, a duplicate ID or unique key.
        assert {(state or "")[:2] for state in answers} <= {"", "22", "23", "54"}, answers
        other_runs_succeed(roles.owner, served)
        owner.execute("select underway.cancel_runs(array(select id from underway.run order by id limit 100))")
        owner.execute("select underway.cancel_runs(array(select id from underway.run))")
        another = start_supervisor("extremes", "--procs", "1", "--database", roles.owner)
        other_runs_succeed(roles.owner, served)
        other_runs_succeed(roles.owner, another)
        found = owner.execute("select state, result from underway.finished_run where id = %s", [done.id]).fetchone()
        assert found == ("succeeded", 1), "another run with its id has not replaced it"


def test_no_call_by_the_enqueuer_harms_other_runs(roles: Roles, served: Supervisor) -> None:
    arguments: dict[str, list[Any]] = {
        "job": [*NAMES, "plain", "keyed"],
        "input": INPUTS,
        "delay": SPANS,
        "priority": [-(2**31), -(2**15), 2**15 - 1, 2**15, 2**31 - 1],
        "keep": SPANS,
        "unique_key": KEYS,
        "concurrency_key": KEYS,
    }
    rng = random.Random(SEED)
    calls = [{"job": "plain", name: extreme} for name, values in arguments.items() for extreme in values]
    calls += [
        {"job": "plain"} | {name: rng.choice(arguments[name]) for name in rng.sample(sorted(arguments), 3)}
        for _ in range(RANDOM_ROWS)
    ]
    answers: Counter[str | None] = Counter()
    with connect(roles.enqueuer) as enqueuer:
        for call in calls:
            given = sql.SQL(", ").join(
                sql.SQL("{} => {}").format(sql.Identifier(name), sql.Literal(argument))
                for name, argument in call.items()
            )
            try:
                enqueuer.execute(sql.SQL("select underway.enqueue({})").format(given))
                answers[None] += 1
            except psycopg.Error as error:
                answers[error.sqlstate] += 1
    assert answers[None] > 50
    assert {(state or "")[:2] for state in answers} <= {"", "UW", "22", "54"}, answers
    other_runs_succeed(roles.owner, served)


# Bad rows that the tables accept


REFUSE = """
create function refuse() returns trigger language plpgsql as $$
begin
    raise exception 'no % can be %', old.job, tg_op using errcode = 'numeric_value_out_of_range';
end $$;
"""


def refuse(connection: Connection, table: str, what: str, bad: str) -> None:
    """Make Postgres reject this run's data in every statement with the given operation on it."""
    connection.execute(REFUSE)
    connection.execute(
        sql.SQL(
            "create trigger refused before {} on {} for each row when (old.id = {}) execute function refuse()"
        ).format(sql.SQL(what), sql.Identifier("underway", table), sql.Literal(bad))
    )


def test_a_run_that_cannot_be_promoted_blocks_no_other_run(
    connection: Connection, start_supervisor: Start, database: str
) -> None:
    bad, *others = (insert(connection, **PLAIN | {"state": "waiting"}) for _ in range(4))
    refuse(connection, "run", "update of state", bad)
    supervisor = start_supervisor("extremes", "--procs", "1")
    succeeded = "select count(*) = 3 from underway.finished_run where id = any(%s::uuid[]) and state = 'succeeded'"
    eventually(lambda: value(connection, succeeded, [others]) or supervisor.process.poll(), within=60)
    assert value(connection, succeeded, [others])
    assert supervisor.log.count("promotion: the database refuses the data of a row: no plain can be UPDATE") == 1
    other_runs_succeed(database, supervisor)
    assert value(connection, "select state from underway.run where id = %s", [bad]) == "waiting"


def test_a_claim_that_is_always_refused_causes_no_busy_loop(
    connection: Connection, start_supervisor: Start, database: str
) -> None:
    """As with an exhausted token sequence. The supervisor asks at each poll, and serves when the cause is gone."""
    connection.execute("alter sequence underway.token maxvalue 2")
    connection.execute("select setval('underway.token', 2)")
    insert(connection, **PLAIN)
    supervisor = start_supervisor("extremes", "--procs", "1")
    supervisor.until("claim: the database refuses the data of a row")
    claims = "select xact_rollback from pg_stat_database where datname = current_database()"
    before = value(connection, claims)
    time.sleep(3)
    connection.execute("select pg_stat_clear_snapshot()")
    assert value(connection, claims) - before < 60  # a busy loop makes hundreds
    connection.execute("alter sequence underway.token no maxvalue")
    other_runs_succeed(database, supervisor)


def test_a_run_that_cannot_be_reaped_blocks_no_other_run(connection: Connection, start_supervisor: Start) -> None:
    bad, *others = (
        insert_held(connection, uuid4(), job="plain", step="work", lease_expires_at=YESTERDAY)[0] for _ in range(4)
    )
    refuse(connection, "run", "update of state", bad)
    supervisor = start_supervisor("extremes", "--procs", "1")
    succeeded = "select count(*) = 3 from underway.finished_run where id = any(%s::uuid[]) and state = 'succeeded'"
    eventually(lambda: value(connection, succeeded, [others]) or supervisor.process.poll(), within=60)
    assert value(connection, succeeded, [others])
    assert supervisor.log.count("reaping: the database refuses the data of a row") == 1


def test_a_run_that_cannot_be_removed_blocks_no_other_run(connection: Connection, start_supervisor: Start) -> None:
    runs = [insert(connection, **PLAIN) for _ in range(4)]
    connection.execute("select underway.cancel_runs(%s::uuid[])", [runs])
    connection.execute("update underway.finished_run set expires_at = now() - interval '1 hour'")
    refuse(connection, "finished_run", "delete", runs[0])
    supervisor = start_supervisor("extremes", "--procs", "1")
    left = "select array_agg(id::text) from underway.finished_run"
    eventually(lambda: value(connection, left) == runs[:1] or supervisor.process.poll(), within=60)
    assert value(connection, left) == runs[:1]
    supervisor.until("retention: the database refuses the data of a row")


@pytest.mark.parametrize("finishing", ["commit", "cancel"])
def test_a_run_that_cannot_be_admitted_blocks_only_its_own_key(any_database: str, finishing: str) -> None:
    """The key is granted in the commit of another run, which must succeed even if the next run in line is invalid."""
    with psycopg.connect(any_database, autocommit=True) as connection:
        keyed = {"concurrency_key": "key", "holds_key": True}
        done, token = insert_held(connection, OWNER, **keyed)
        other, another_token = insert_held(connection, OWNER, **keyed | {"concurrency_key": "other"})
        bad = insert(connection, state="waiting", concurrency_key="key")
        good = insert(connection, state="waiting", concurrency_key="other")
        refuse(connection, "run", "update of state", bad)
        if finishing == "cancel":
            connection.execute(
                "update underway.run set state = 'pending', owner = null, lease_expires_at = null where holds_key"
            )
            assert value(connection, "select underway.cancel_runs(%s::uuid[])", [[done, other]]) == 2
        else:
            rows = [finish(done, token), finish(other, another_token)]
            assert with_store(any_database, lambda store: store.finish(rows, []), OWNER) == {token, another_token}
        assert value(connection, "select count(*) from underway.finished_run") == 2
        assert value(connection, "select state from underway.run where id = %s", [good]) == "pending"
        assert value(connection, "select state from underway.run where id = %s", [bad]) == "waiting"


@pytest.mark.chaos  # takes half a minute and transfers 130 MB
def test_an_input_that_no_worker_can_read_fails_its_own_run(
    connection: Connection, start_supervisor: Start, database: str
) -> None:
    """Each worker that received the input died before its Started, so no run was charged and the next worker got it."""
    connection.execute("alter table underway.run drop constraint run_input_bytes")
    large = insert(connection, **PLAIN | {"input": '"' + 130 * 2**20 * "x" + '"'})
    supervisor = start_supervisor("extremes", "--procs", "1")
    ended = "select state || ': ' || error from underway.finished_run where id = %s"
    eventually(lambda: connection.execute(ended, [large]).fetchone() or supervisor.process.poll(), within=90)
    assert value(connection, ended, [large]).startswith(
        "failed: the input has 136,314,882 bytes, and a worker takes at"
    )
    attempts = connection.execute("select outcome from underway.attempt where run_id = %s", [large]).fetchall()
    assert attempts == [("failed",)]
    other_runs_succeed(database, supervisor)
    assert "a worker died" not in supervisor.log
