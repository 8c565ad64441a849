"""What the tests of an app need: its jobs without a supervisor, and a Postgres that goes with the tests.

    run_inline(job, value)      the steps of one run, here and now, without any database
    drain(app)                  everything that is claimable in a real database, here and now
    advance(conn, delta)        time passes for what is in the database
    using_database(app, url)    point an app to a test's database
    temporary_postgres()        a server for tests; with pytest the fixture `underway_database`

For the fixtures: `pytest_plugins = ["underway.testing"]` in your conftest.py. PYTEST_DONT_REWRITE, which lets that file
import from here as well.
"""

from underway.testing.clock import advance
from underway.testing.database import using_database
from underway.testing.draining import drain
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

# Read by pytest, of every plugin: so nothing else here needs pytest.
pytest_plugins = ["underway.testing.fixtures"]
