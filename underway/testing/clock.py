"""Lets time pass when a test says so."""

from datetime import timedelta
from typing import Any

import psycopg

from underway.definition import options
from underway.postgres import temporary_database


def advance(conn: psycopg.Connection[Any], delta: timedelta) -> None:
    """Let time pass for everything in the database: runs come due, leases and finished runs expire, that much sooner.

    Delays, back-offs, leases, schedules and `keep` move. Instants in the past, such as those of attempts, stay. This is
    part of your transaction: commit it before you drain.
    """
    temporary_database.advance(conn, options.checked_duration("delta", delta))
