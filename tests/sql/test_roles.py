"""The roles of docs/security.md: each may do what the page says, and nothing else."""

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import psycopg
import pytest
from apps import clients
from db import Connection, insert, insert_held, value, with_store
from harness import Supervisor, eventually
from places import ROOT
from psycopg import sql
from psycopg.conninfo import make_conninfo
from underway_command import underway

from underway.postgres import migrate
from underway.postgres.step_transaction import StepTransactions, transaction_name
from underway.testing import using_database

Denied = psycopg.errors.InsufficientPrivilege

PAGE = (ROOT / "docs" / "security.md").read_text()
BLOCKS = re.findall(r"^```sql\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
ROLES = ("underway_owner", "underway_enqueuer", "underway_client", "underway_reader")
# Each table, with a column that an attempted write names.
TABLES = {
    "run": "input",
    "finished_run": "error",
    "attempt": "error",
    "job": "step",
    "queue": "paused",
    "schedule": "cron",
    "supervisor": "app",
    "stop_request": "supervisor",
    "migration": "name",
    "definition": "hash",
}
EXECUTABLE = {"enqueue", "status"}
# They compute and access no table.
HARMLESS = {"checked_duration", "place_run", "render_key", "keeps_key", "payload"}


def grants(role: str, names: dict[str, str]) -> str:
    """The page's SQL for a role, with names of this test's own: roles belong to the whole server."""
    block: str
    (block,) = [block for block in BLOCKS if f"create role {role} " in block]
    for name, own in names.items():
        block = block.replace(name, own)
    return block


class Roles(NamedTuple):
    """URLs by role."""

    owner: str
    enqueuer: str
    client: str
    reader: str


@pytest.fixture
def roles(empty_database: str) -> Iterator[Roles]:
    """Executes the page's grants, migrates as the page's owner, and registers jobs."""
    suffix = f"_{uuid4().hex[:8]}"
    names = {role: role + suffix for role in ROLES}
    with psycopg.connect(empty_database, autocommit=True) as superuser:
        superuser.execute(grants(ROLES[0], names))
        urls = [make_conninfo(empty_database, user=name) for name in names.values()]
        with psycopg.connect(urls[0]) as owner:
            migrate.migrate(owner)
        for role in ROLES[1:]:
            superuser.execute(grants(role, names))
        with using_database(clients.app, urls[0]):
            clients.app.sync()
        try:
            yield Roles(*urls)
        finally:
            for name in names.values():
                superuser.execute(sql.SQL("drop owned by {} cascade").format(sql.Identifier(name)))
                superuser.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


def connect(url: str) -> Connection:
    return psycopg.connect(url, autocommit=True)


def run_in_every_state(owner: str) -> UUID:
    """One run in each table; returns the live one."""
    with connect(owner) as connection:
        live = insert(connection, input='{"secret": "input"}', unique_key="in-use")
        insert_held(connection, uuid4())
        connection.execute("select underway.cancel(%s)", [insert(connection)])
        connection.execute("insert into underway.schedule values ('j', 'n', '@daily', 'UTC', 'last', true, '1', now())")
        connection.execute("insert into underway.queue values ('default', false, 'lost')")
    return UUID(live)


def refused_tables(connection: Connection, verb: str) -> set[str]:
    statements = {
        "select": "select 1 from {} limit 1",
        "insert": "insert into {0} ({1}) select {1} from {0} limit 0",
        "update": "update {} set {} = default where false",
        "delete": "delete from {} where false",
        "truncate": "truncate {}",
    }
    refused = set()
    for table in TABLES:
        name = sql.Identifier("underway", table)
        column = TABLES[table]
        parts = [name, sql.Identifier(column)] if verb in ("insert", "update") else [name]
        try:
            connection.execute(sql.SQL(statements[verb]).format(*parts))
        except Denied:
            refused.add(table)
    return refused


def refused_functions(connection: Connection, owner: str) -> set[str]:
    """The functions of the schema whose call is denied to this role."""
    with connect(owner) as own:
        functions = own.execute(
            "select proname, proargtypes::regtype[]::text[] from pg_proc where pronamespace = 'underway'::regnamespace"
        ).fetchall()
        values = {
            "uuid": value(own, "select id from underway.run where state = 'pending' limit 1"),
            "uuid[]": own.execute("select array_agg(id) from underway.run").fetchone()[0],  # type: ignore[index]
            "text": "1", "text[]": ["default"], "json": "{}", "jsonb": "{}", "integer": 1, "bigint": 10**15,
            "interval": "0", "boolean": True,
            "double precision": 0, "smallint": 1,
            "timestamp with time zone": "infinity", "timestamp with time zone[]": [],
        }  # fmt: skip
    refused = set()
    for name, types in functions:
        casts = sql.SQL(", ").join(sql.SQL("{}::{}").format(sql.Literal(values[kind]), sql.SQL(kind)) for kind in types)
        try:
            connection.execute(sql.SQL("select {}({})").format(sql.Identifier("underway", name), casts))
        except Denied:
            refused.add(name)
        except psycopg.Error:
            continue  # an error, but not a denial
    return refused


def test_an_enqueuer_may_enqueue_and_read_statuses(roles: Roles) -> None:
    with connect(roles.enqueuer) as connection:
        run = value(connection, "select underway.enqueue('orders', '{\"id\": 1}', priority => 3, unique_key => 'k')")
        assert value(connection, "select underway.enqueue('orders', '{\"id\": 1}', unique_key => 'k')") == run
        delayed = value(connection, "select underway.enqueue('orders', '{\"id\": 2}', delay => '1 hour')")
        assert value(connection, "select underway.status(%s)", [run]) == "pending"
        assert value(connection, "select underway.status(%s)", [delayed]) == "waiting"
        assert value(connection, "select underway.status(%s)", [uuid4()]) is None
        with connect(roles.owner) as owner:
            owner.execute("select underway.cancel(%s)", [run])
        assert value(connection, "select underway.status(%s)", [run]) == "cancelled"


def test_an_enqueuer_may_do_nothing_else(roles: Roles) -> None:
    run_in_every_state(roles.owner)
    with connect(roles.enqueuer) as connection:
        for verb in ("select", "insert", "update", "delete", "truncate"):
            assert refused_tables(connection, verb) == set(TABLES), verb
        for view in ("runs", "stranded", "stranded_lane"):
            with pytest.raises(Denied):
                connection.execute(sql.SQL("select * from {}").format(sql.Identifier("underway", view)))
        with pytest.raises(Denied):
            connection.execute("select nextval('underway.token')")
        with pytest.raises(Denied):
            connection.execute("create table underway.other ()")
        allowed = EXECUTABLE | HARMLESS
        assert not refused_functions(connection, roles.owner) & allowed
        everything = {
            name for (name,) in connection.execute(
                "select proname from pg_proc where pronamespace = 'underway'::regnamespace"
            )
        }  # fmt: skip
        assert refused_functions(connection, roles.owner) == everything - allowed
    with connect(roles.owner) as owner:
        assert value(owner, "select count(*) from underway.run where cancel_requested") == 0
        assert value(owner, "select count(*) from underway.finished_run") == 1


def test_a_client_may_enqueue_and_wait_from_python(roles: Roles) -> None:
    with using_database(clients.app, roles.client):
        run = clients.echoes.enqueue(1)
        clients.echoes.enqueue_many([2, 3], unique_key="u")
        assert (run.status(), run.attempts()) == ("pending", [])
        with pytest.raises(Denied):
            run.cancel()
    with connect(roles.client) as connection:
        for verb in ("update", "delete", "truncate"):
            assert refused_tables(connection, verb) == set(TABLES), verb
        assert refused_tables(connection, "insert") == set(TABLES) - {"run"}


def test_a_reader_may_read_everything_and_write_nothing(roles: Roles) -> None:
    run = run_in_every_state(roles.owner)
    reads = (
        "list --json", "list --stranded", f"show {run} --json", f"attempts {run}", "queues", "supervisors",
        "schedules", "dead-letters", "dead-letters lost",
    )  # fmt: skip
    writes = (
        f"cancel {run}", "pause default", "resume default", "shutdown --all", "redrive --label lost",
        "discard --label lost", "cancel --job job",
    )  # fmt: skip
    answers = {line: underway(*line.split(), database=roles.reader) for line in (*reads, *writes)}
    for line in reads:
        assert answers[line].returncode == 0, answers[line]
    assert '"secret"' in answers[f"show {run} --json"].stdout
    for line in writes:
        assert answers[line].returncode == 1, answers[line]
        assert "permission denied" in answers[line].stderr
        assert "Traceback" not in answers[line].stderr
    with connect(roles.reader) as connection:
        assert refused_tables(connection, "select") == set()
        for verb in ("insert", "update", "delete", "truncate"):
            assert refused_tables(connection, verb) == set(TABLES), verb
        with pytest.raises(Denied):
            connection.execute("select underway.enqueue('orders', '{}')")


def test_a_reader_may_read_tables_that_migrations_add_later(roles: Roles) -> None:
    with connect(roles.owner) as owner:
        owner.execute("create table underway.added_later ()")
    with connect(roles.reader) as reader:
        reader.execute("select * from underway.added_later")


def test_supervisors_do_not_need_a_superuser(
    roles: Roles, start_supervisor: Callable[..., Supervisor], tmp_path: Path
) -> None:
    with connect(roles.owner) as owner:
        assert value(owner, "select rolsuper or rolcreaterole from pg_roles where rolname = current_user") is False
        owner.execute("create table underway.written (attempt int)")
    app = tmp_path / "owned.py"
    app.write_text(OWNED)
    supervisor = start_supervisor(f"{app}:app", "--procs", "1", "--database", roles.owner)
    with connect(roles.enqueuer) as enqueuer, connect(roles.owner) as owner:
        eventually(lambda: value(owner, "select exists (select from underway.job where name = 'owned')"))
        run = value(enqueuer, "select underway.enqueue('owned', '5')")
        eventually(lambda: value(enqueuer, "select underway.status(%s)", [run]) == "succeeded")
        supervisor.send(signal.SIGTERM)
        assert supervisor.wait() == 0
        assert "permission denied" not in supervisor.log
        assert owner.execute("select attempt from underway.written").fetchall() == [(5,)]


OWNED = """
from underway import Context, Done, To, Underway

app = Underway()

def work(cx: Context, value: int) -> Done:
    cx.tx.execute("insert into underway.written values (%s)", [value])
    return To.done()

owned = app.job("owned").step(work)
"""


def test_an_owner_may_end_the_backend_of_a_killed_step(roles: Roles) -> None:
    """A session of another role with the same application_name does not prevent it."""
    transaction = StepTransactions(roles.owner, uuid4(), "testhost")
    with psycopg.connect(roles.reader, application_name=transaction_name(4711)) as other_session:
        connection = transaction.begin(4711)
        with_store(roles.owner, lambda store: store.terminate([4711]))
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
        other_session.execute("select 1")
    transaction.close()


def test_a_schema_created_for_its_owner_is_migrated_without_create_rights(empty_database: str) -> None:
    owner = f"underway_given_{uuid4().hex[:8]}"
    with connect(empty_database) as superuser:
        superuser.execute(f"create role {owner} login; create schema underway authorization {owner}")
        with psycopg.connect(make_conninfo(empty_database, user=owner)) as connection:
            assert len(migrate.migrate(connection)) == len(migrate.migrations())
        superuser.execute(f"drop owned by {owner} cascade; drop role {owner}")


# Security definer functions


def functions(connection: Connection) -> list[tuple[Any, ...]]:
    return connection.execute(
        "select proname, prosecdef, coalesce(proconfig, '{}'), prosrc, prosqlbody is not null, "
        "has_function_privilege('public', oid, 'execute') "
        "from pg_proc where pronamespace = 'underway'::regnamespace order by proname"
    ).fetchall()


def test_every_function_pins_its_search_path_and_executes_no_text(connection: Connection) -> None:
    found = functions(connection)
    assert {name for name, definer, *_ in found if definer} == EXECUTABLE
    for name, definer, settings, source, parsed, public in found:
        assert parsed or "search_path=pg_catalog, pg_temp" in settings, name
        assert not re.search(r"\bexecute\b", source, re.IGNORECASE), name
        assert not (definer and public), f"public may execute {name}"
        # Objects outside pg_catalog are named with their schema.
        tables = re.findall(r"\b(?:from|join|into|update)\s+([a-z_.]+)", source)
        known = {table for table in tables if table in TABLES}
        assert not known, f"{name} names {known} without the schema"


def test_an_enqueue_uses_no_tables_or_functions_of_its_caller(roles: Roles, empty_database: str) -> None:
    with connect(empty_database) as superuser:
        superuser.execute("create schema evil; grant all on schema evil to public; grant temp on database {} to public"
                          .format(value(superuser, "select quote_ident(current_database())")))  # fmt: skip
    with connect(roles.enqueuer) as connection:
        connection.execute(
            """
            create table evil.hits (n int);
            create function evil.hit() returns int language sql as 'insert into evil.hits values (1) returning 1';
            create function evil.clock_timestamp() returns timestamptz language sql as
                'select evil.hit(); select pg_catalog.now()';
            create function evil.pg_notify(text, text) returns void language sql as
                'select evil.hit(); select null::void';
            create function evil.less(timestamptz, interval) returns timestamptz language sql as
                'select evil.hit(); select $1';
            create operator evil.- (leftarg = timestamptz, rightarg = interval, function = evil.less);
            create temp table run (id uuid);
            create temp table job (name text);
            grant all on table evil.hits to public;
            """
        )
        for path in ("evil, pg_catalog", "pg_temp, evil, pg_catalog"):
            connection.execute(sql.SQL("set search_path = {}").format(sql.SQL(path)))
            run = value(connection, "select underway.enqueue('orders', '{\"id\": 1}')")
            assert value(connection, "select underway.status(%s::pg_catalog.uuid)", [str(run)]) == "pending"
        assert value(connection, "select pg_catalog.count(*) from evil.hits") == 0


@pytest.mark.parametrize("text", ["'; drop table underway.run; --", "a'b\"c\\d", "$$", "%s {id} %I"])
def test_texts_are_never_executed(roles: Roles, text: str) -> None:
    with connect(roles.enqueuer) as connection:
        with pytest.raises(psycopg.errors.Error, match="underway knows no job"):
            connection.execute("select underway.enqueue(%s, '{}')", [text])
        key = text.replace("{id}", "")
        value(connection, "select underway.enqueue('orders', '{\"id\": 1}', unique_key => %s)", [key])
    with connect(roles.owner) as owner:
        assert value(owner, "select unique_key from underway.run") == key


def test_every_function_that_the_page_names_exists(connection: Connection) -> None:
    for block in BLOCKS:
        for signature in re.findall(r"on function (\S+\(.*?\)) to", block):
            assert value(connection, "select to_regprocedure(%s) is not null", [signature]), signature
