"""From the name of a database to connections of ours."""

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from underway.errors import InvalidOption

# A server that is gone is noticed within seconds, also when nothing answers any more (a cut cable, a black hole):
# the kernel's own defaults take a quarter of an hour, far longer than any lease.
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
    """What to connect with. Starts the embedded Postgres if that is what `database` names.

    Settings that the caller gave win over ours, but for the encoding. Raises InvalidOption for a text that is no
    connection string; the message does not repeat it, since it may hold a password.
    """
    if database == "embedded:":
        from underway.postgres import embedded  # psycopg users without the wheel never come here

        database = embedded.url()
    try:
        given = conninfo_to_dict(database)
        if not database.strip():  # libpq would take it for a server on this host
            raise psycopg.ProgrammingError
    except psycopg.ProgrammingError:
        raise InvalidOption(
            "invalid database: expected a connection string (postgresql://user@host/name or key=value) or embedded:"
        ) from None
    # A role, a database or PGCLIENTENCODING may have any. Under SQL_ASCII psycopg returns bytes for text: the first
    # claim ended the supervisor.
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
