"""Brings the schema `underway` of a database up to this code, and refuses one that does not fit.

Migrations are plain files `NNNN_name.sql`, expand first and contract in a later release. Each says in its header
`-- oldest code: N` the lowest migration number that code must know to run on the migrated schema, so that old workers
can go on while a new release is rolled out.
"""

import re
import time
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, LiteralString

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from underway.errors import SchemaError, SchemaMissing, SchemaTooNew, SchemaTooOld
from underway.postgres.queries import statements

# Whoever wants a table that we wait for waits behind us: every supervisor, for as long as one transaction that has read
# it stays open. So we step back soon, and come again.
_LOCK_TIMEOUT = "2s"
_TRIES = 20
_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Migration:
    version: int
    name: str
    oldest_code: int
    sql: LiteralString


@cache
def migrations() -> tuple[Migration, ...]:
    """All that this code knows, in order."""
    found = []
    for file in files("underway.postgres").joinpath("migrations").iterdir():
        if match := re.fullmatch(r"(\d{4})_(\w+)\.sql", file.name):
            sql = file.read_text()
            header = re.search(r"^-- oldest code: (\d+)$", sql, re.MULTILINE)
            if header is None:
                raise ValueError(f"{file.name} does not say '-- oldest code: N'")
            found.append(Migration(int(match[1]), match[2], int(header[1]), sql))
    return tuple(sorted(found, key=lambda migration: migration.version))


def migrate(connection: psycopg.Connection[Any]) -> list[str]:
    """Apply what is missing, all of it in one transaction, and return the names of what was applied.

    Safe when several start at once: the others wait and find nothing to do; and while supervisors are at work. Every
    statement names its schema, so the session's search_path is neither used nor changed.
    """
    check_encoding(connection)
    for tries_left in reversed(range(_TRIES)):
        try:
            return _apply_missing(connection)
        except psycopg.errors.LockNotAvailable:
            if not tries_left:
                raise SchemaError(
                    "nothing was migrated: all this time other transactions had the tables of underway in use (a long "
                    "query, a dump, a session idle in transaction: see pg_stat_activity); end them, or try again later"
                ) from None
            time.sleep(_PAUSE_SECONDS)
    raise AssertionError


def _apply_missing(connection: psycopg.Connection[Any]) -> list[str]:
    sql = statements()
    ours = connection.info.transaction_status == TransactionStatus.IDLE  # or it is the caller's, who has begun it
    with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
        if ours:
            cursor.execute(sql["see_what_others_commit"])
            cursor.execute(sql["take_the_time_it_takes"])
        cursor.execute(sql["lock_migrations"])
        # A role that may not create schemas can still find out that there is nothing to do.
        if cursor.execute(sql["schema_exists"]).fetchone() != (True,):
            cursor.execute(sql["create_schema"])
            cursor.execute(sql["create_migration_table"])
        applied: dict[int, int] = dict(cursor.execute(sql["applied_migrations"]).fetchall())
        check_new_enough(applied)
        missing = [migration for migration in migrations() if migration.version not in applied]
        (patience,) = cursor.execute(sql["lock_timeout"]).fetchone() or (None,)
        if missing:
            cursor.execute(sql["set_lock_timeout"], {"lock_timeout": _LOCK_TIMEOUT})
        for migration in missing:
            cursor.execute(migration.sql)
            cursor.execute(
                sql["record_migration"],
                {"version": migration.version, "name": migration.name, "oldest_code": migration.oldest_code},
            )
        cursor.execute(sql["recover_tokens"])
        cursor.execute(sql["set_lock_timeout"], {"lock_timeout": patience})
    return [f"{migration.version:04d}_{migration.name}" for migration in missing]


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
