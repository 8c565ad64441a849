"""Time that passes when a test says so."""

from datetime import timedelta
from typing import Any

import psycopg

from underway.definition import options
from underway.postgres import temporary_database


def advance(conn: psycopg.Connection[Any], delta: timedelta) -> None:
    """Let time pass for what is in the database: all of it comes due, lapses and expires that much sooner.

    Delays, back-offs, leases, schedules and `keep` are moved; instants that have passed, as of attempts, stay. It is
    part of your transaction: commit it before you drain.
    """
    temporary_database.advance(conn, options.checked_duration("delta", delta))
