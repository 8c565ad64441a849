"""Django's database connections: checked and closed around each request there, and around each task here."""

import logging
import sys

log = logging.getLogger("underway.worker")


def close_old_connections() -> None:
    """Close those that broke or are older than CONN_MAX_AGE, if the app has loaded and configured Django.

    Django opens a new one when a step asks. (After a restart of Postgres all steps failed on the connection of the
    first, until their worker was replaced.)
    """
    database = sys.modules.get("django.db")
    if database is None or not sys.modules["django.conf"].settings.configured:
        return
    try:
        database.close_old_connections()
    except Exception:
        log.warning("django.db.close_old_connections() failed", exc_info=True)
