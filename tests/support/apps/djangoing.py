"""Steps that use Django's connections with different settings."""

import os

import django
import psycopg
from django.conf import settings
from django.db import connections
from psycopg.conninfo import conninfo_to_dict

from underway import Context, Done, RetryPolicy, To, Underway

app = Underway()

if "UNDERWAY_DATABASE_URL" in os.environ and not settings.configured:  # in a worker, and not in the tests
    given = conninfo_to_dict(os.environ["UNDERWAY_DATABASE_URL"])
    names = {"NAME": "dbname", "USER": "user", "HOST": "host", "PORT": "port"}
    database = {"ENGINE": "django.db.backends.postgresql", **{name: given.get(key, "") for name, key in names.items()}}
    settings.configure(
        DATABASES={
            "default": database,
            "kept": {**database, "CONN_MAX_AGE": None},
            "checked": {**database, "CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": True},
        }
    )
    django.setup()


def ask(cx: Context, alias: str) -> Done[int]:
    with connections[alias].cursor() as cursor:
        cursor.execute("select pg_backend_pid()")
        (pid,) = cursor.fetchone()
    return To.done(pid)


def fail_to_close(cx: Context, nothing: None) -> Done:
    def closing() -> None:
        raise psycopg.OperationalError("it cannot be closed")

    django.db.close_old_connections = closing
    return To.done()


asks = app.job("asks").step(ask, retry=RetryPolicy(max_attempts=2))
fails_to_close = app.job("fails-to-close").step(fail_to_close)
