"""Brings the schema `underway` of a database up to this code, and refuses a schema that does not fit.

The schema has two parts:

- **Tables, indexes and types** come from numbered migrations, `sql/migrations/NNNN_name.sql`. Each is applied once and
  never changed after a release.
- **Functions and views** come from definitions, one per file, in `sql/functions` and `sql/views`. A definition is
  applied again when its text has changed. `create or replace` keeps the grants of users, so it is the only way to
  change one. It cannot change a function's parameters or result, nor a view's existing columns: for that, a numbered
  migration drops the old definition first.

All of it happens in one transaction. What must not happen inside a transaction, on tables that may be large, goes to a
second file, `NNNN_name.online.sql`, which runs after the commit: see online.py.

Migrations expand first and contract in a later release, so that old and new code work side by side during a rollout.
Each migration says in its header `-- oldest code: N` the lowest migration that code must know to run on the migrated
schema. A release that changes a definition has a new migration too, even if it consists of the header only: so the
highest migration also tells which definitions a database has, newer code refuses older definitions, and older code
never replaces newer ones.
"""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from hashlib import sha256
from typing import Any, LiteralString

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from underway.errors import SchemaError, SchemaMissing, SchemaTooNew, SchemaTooOld
from underway.postgres import online
from underway.postgres.queries import read, statements

# All statements that need the table queue behind a migration that waits for its lock. So a migration gives up soon and
# tries again: it may wait as long as the longest transaction that has read the table.
_LOCK_TIMEOUT = "2s"
_TRIES = 20
_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Migration:
    version: int
    name: str
    oldest_code: int
    sql: LiteralString
    online_phase: tuple[online.Statement, ...] = ()

    @property
    def full_name(self) -> str:
        return f"{self.version:04d}_{self.name}"


@dataclass(frozen=True, slots=True)
class Definition:
    """A function or view. Its name is `functions/enqueue` or `views/runs`."""

    name: str
    sql: LiteralString

    @property
    def hash(self) -> str:
        return sha256(self.sql.encode()).hexdigest()


@cache
def migrations() -> tuple[Migration, ...]:
    """All migrations that this code knows, in order."""
    texts = read("migrations")
    found = []
    for file, sql in texts.items():
        if match := re.fullmatch(r"(\d{4})_(\w+)", file):
            header = re.search(r"^-- oldest code: (\d+)$", sql, re.MULTILINE)
            if header is None:
                raise ValueError(f"{file}.sql does not say '-- oldest code: N'")
            phase = online.split(texts.get(f"{file}.online", ""))
            found.append(Migration(int(match[1]), match[2], int(header[1]), sql, phase))
    return tuple(sorted(found, key=lambda migration: migration.version))


@cache
def definitions() -> tuple[Definition, ...]:
    """All functions and views, each after those that its text names.

    Postgres looks up what a view or the body of an SQL function names when it is created, but not what the body of a
    PL/pgSQL function names. One order for all is simpler than telling them apart.
    """
    found = {
        name: Definition(f"{folder}/{name}", sql)
        for folder in ("functions", "views")
        for name, sql in read(folder).items()
    }
    order: TopologicalSorter[str] = TopologicalSorter()
    for name, definition in found.items():
        named = set(re.findall(r"\bunderway\.(\w+)", definition.sql)) & found.keys() - {name}
        order.add(name, *sorted(named))
    return tuple(found[name] for name in order.static_order())


def migrate(connection: psycopg.Connection[Any]) -> list[str]:
    """Apply what is missing, and return the names of what was applied.

    Safe when several start at once, because the others wait and find nothing to do; and while supervisors are at work.
    Every statement names its schema, so the session's search_path is neither used nor changed.

    In a transaction that the caller has opened, online phases are left to the next call without one.
    """
    check_encoding(connection)
    own_transaction = connection.info.transaction_status == TransactionStatus.IDLE
    for tries_left in reversed(range(_TRIES)):
        try:
            applied = _apply_missing(connection, own_transaction)
            break
        except psycopg.errors.LockNotAvailable:
            if not tries_left:
                raise SchemaError(
                    f"migration not applied: could not lock underway's tables in {_TRIES} tries, because other "
                    "transactions use them (a long query, a dump, a session idle in transaction: see "
                    "pg_stat_activity); end those transactions, or try again later"
                ) from None
            time.sleep(_PAUSE_SECONDS)
    if own_transaction:
        phases = {migration.version: migration.online_phase for migration in migrations()}
        names = {migration.version: migration.full_name for migration in migrations()}
        applied += [f"{names[version]}.online" for version in online.complete(connection, phases)]
    return applied


def _apply_missing(connection: psycopg.Connection[Any], own_transaction: bool) -> list[str]:
    sql = statements()
    with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
        if own_transaction:
            cursor.execute(sql["use_read_committed"])
            cursor.execute(sql["disable_transaction_timeout"])
        cursor.execute(sql["lock_migrations"])
        # A role that may not create schemas can still find out that there is nothing to do.
        is_new = cursor.execute(sql["schema_exists"]).fetchone() != (True,)
        if is_new:
            cursor.execute(sql["create_schema"])
            cursor.execute(sql["create_migration_table"])
            cursor.execute(sql["comment_on_migration_table"])
            cursor.execute(sql["create_definition_table"])
            cursor.execute(sql["comment_on_definition_table"])
        applied: dict[int, int] = dict(cursor.execute(sql["applied_migrations"]).fetchall())
        check_new_enough(applied)
        missing = [migration for migration in migrations() if migration.version not in applied]
        changed = [] if _is_newer(applied) else list(_changed_definitions(cursor))
        (lock_timeout,) = cursor.execute(sql["lock_timeout"]).fetchone() or (None,)
        if missing or changed:
            cursor.execute(sql["set_lock_timeout"], {"lock_timeout": _LOCK_TIMEOUT})
        for migration in missing:
            _apply(cursor, migration, is_new)
        for definition in changed:
            cursor.execute(definition.sql)
            cursor.execute(sql["record_definition"], {"name": definition.name, "hash": definition.hash})
        cursor.execute(sql["recover_tokens"])
        cursor.execute(sql["set_lock_timeout"], {"lock_timeout": lock_timeout})
    names = [migration.full_name for migration in missing]
    return names if is_new else names + [definition.name for definition in changed]


def _apply(cursor: psycopg.Cursor[Any], migration: Migration, is_new: bool) -> None:
    """Apply one migration. The tables of a new schema are empty, so its online phase is part of the transaction."""
    cursor.execute(migration.sql)
    if is_new:
        for statement in migration.online_phase:
            cursor.execute(statement.inside_transaction)
    record = {"version": migration.version, "name": migration.name, "oldest_code": migration.oldest_code}
    cursor.execute(statements()["record_migration"], {**record, "complete": is_new or not migration.online_phase})


def _changed_definitions(cursor: psycopg.Cursor[Any]) -> Iterator[Definition]:
    applied: dict[str, str] = dict(cursor.execute(statements()["applied_definitions"]).fetchall())
    return (definition for definition in definitions() if applied.get(definition.name) != definition.hash)


def check(applied: dict[int, int] | None) -> None:
    """Raise a SchemaError unless this code can run on a schema with these migrations (None: no schema at all).

    `applied` maps each applied version to the oldest code it allows.
    """
    if not applied:
        raise SchemaMissing
    check_new_enough(applied)
    needed = migrations()[-1].version
    if max(applied) < needed:
        raise SchemaTooOld(
            f"the database is at migration {max(applied)}, this version of underway needs {needed}: "
            f"run 'underway migrate' (or call app.migrate())"
        )


def check_encoding(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Raise a SchemaError unless the encoding of the database is UTF8.

    A LATIN1 or SQL_ASCII database could not store an error with an emoji: the lease expired three times, and the run
    was quarantined without a trace of the error.
    """
    encoding = connection.info.parameter_status("server_encoding")
    if encoding not in ("UTF8", None):  # some poolers do not report it
        raise SchemaError(
            f"the encoding of the database is {encoding}, which cannot store every input, result and error: "
            "use a database created with: create database NAME encoding 'UTF8' template template0"
        )


def check_new_enough(applied: dict[int, int]) -> None:
    known = migrations()[-1].version
    oldest = max(applied.values(), default=0)
    if oldest > known:
        raise SchemaTooNew(
            f"the database needs code that knows migration {oldest}, this version of underway knows {known}: "
            f"install the newer version of underway"
        )


def _is_newer(applied: dict[int, int]) -> bool:
    """Whether newer code has migrated the schema: its definitions are newer than ours."""
    return max(applied, default=0) > migrations()[-1].version
