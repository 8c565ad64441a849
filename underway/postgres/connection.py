"""The connection string of a database, and its label for people."""

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from underway.errors import InvalidOption

# Detect a dead server within seconds, even if no packet comes back (a cut cable, a dropped route). The kernel's
# defaults take a quarter of an hour, far longer than any lease.
_PARAMETERS: dict[str, str | int] = {
    "application_name": "underway",
    "target_session_attrs": "read-write",
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}


def conninfo(database: str) -> str:
    """The connection string to use. Starts the embedded Postgres if `database` names it.

    The caller's settings override ours, except the encoding. Raises InvalidOption if `database` is not a connection
    string; the message does not contain it, because it may hold a password.
    """
    if database == "embedded:":
        from underway.postgres import embedded  # imported here, because most users do not have the wheel

        database = embedded.url()
    try:
        given = conninfo_to_dict(database)
        if not database.strip():  # libpq would connect to a server on this host
            raise psycopg.ProgrammingError
    except psycopg.ProgrammingError:
        raise InvalidOption(
            "invalid database: expected a connection string (postgresql://user@host/name or key=value) or embedded:"
        ) from None
    # A role, a database or PGCLIENTENCODING may set another encoding. With SQL_ASCII psycopg returns bytes for text.
    # (The first claim ended the supervisor.)
    return make_conninfo("", **{**_PARAMETERS, **given, "client_encoding": "utf8"})


def label(database: str) -> str:
    """The database for people: host, port and name, never the password."""
    if database == "embedded:":
        return database
    try:
        given = conninfo_to_dict(database)
    except psycopg.ProgrammingError:
        return "(not a connection string)"
    return f"{given.get('host') or 'local socket'}:{given.get('port') or 5432}/{given.get('dbname') or 'default'}"
