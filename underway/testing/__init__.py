"""For the tests of an app: run its jobs without a supervisor, and on a temporary Postgres.

    run_inline(job, value)      run the steps of one run in this process, without a database
    drain(app)                  run everything that is claimable in a real database, in this process
    advance(conn, delta)        let time pass for everything in the database
    using_database(app, url)    point an app to a test's database
    temporary_postgres()        start a server for tests; with pytest, use the fixture `underway_database`

For the fixtures, write `pytest_plugins = ["underway.testing"]` in your conftest.py. (PYTEST_DONT_REWRITE lets that file
import from here as well.)
"""

from underway.testing.clock import advance
from underway.testing.database import using_database
from underway.testing.drainer import drain
from underway.testing.inline import Enqueued, InlineAttempt, InlineRun, run_inline
from underway.testing.servers import TemporaryPostgres, temporary_postgres

__all__ = [
    "Enqueued",
    "InlineAttempt",
    "InlineRun",
    "TemporaryPostgres",
    "advance",
    "drain",
    "run_inline",
    "temporary_postgres",
    "using_database",
]

# pytest reads this variable of each plugin. So no other module of this package needs pytest.
pytest_plugins = ["underway.testing.fixtures"]
