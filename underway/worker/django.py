"""Closes Django's broken or old database connections between tasks, as Django does between requests."""

import logging
import sys

log = logging.getLogger("underway.worker")


def close_old_connections() -> None:
    """Close connections that are broken or older than CONN_MAX_AGE, if the app has loaded and configured Django.

    Django opens a new connection when a step needs one. (After a restart of Postgres every step failed on the first
    step's connection, until its worker was replaced.)
    """
    database = sys.modules.get("django.db")
    if database is None or not sys.modules["django.conf"].settings.configured:
        return
    try:
        database.close_old_connections()
    except Exception:
        log.warning("django.db.close_old_connections() failed", exc_info=True)
