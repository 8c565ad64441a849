"""What underway raises.

UnderwayError
├── NoDatabase              no database was named
├── EmbeddedPostgresError   the embedded Postgres could not be started or used
├── SchemaError             the schema in the database does not fit this code
│   ├── SchemaMissing       not migrated yet
│   ├── SchemaTooOld        this code needs a migration that has not been applied
│   └── SchemaTooNew        the database no longer supports code this old
├── AppNotFound             APP names no module, file or attribute that could be imported
├── ImportSideEffect        importing the app tried to do something
├── SupervisorFailed        app.run(): the supervisor did not start serving, or was killed
├── InsideStep              a call that is not allowed inside a step, or a use of cx outside of it
├── JobDefinitionError      a job whose steps do not fit together
├── InvalidOption           an option with a value it cannot take
├── PayloadError            a value that cannot travel as JSON
├── UnknownJob              the database or this app knows no job of that name
├── RunNotFound             no run with that id (it may have left after its `keep`)
├── RunFailed               the run ended as failed; carries its last error
└── RunCancelled            the run ended as cancelled

Retry(Exception)            raised by a step: try again
Fail(Exception)             raised by a step: never try again
Interrupt(BaseException)    raised in a step by the supervisor: stop now
"""

from datetime import timedelta


class UnderwayError(Exception):
    """Base of everything underway raises at a caller."""


class NoDatabase(UnderwayError):
    """No database was named. underway never guesses one."""

    def __init__(self) -> None:
        super().__init__(
            "no database: set UNDERWAY_DATABASE_URL (or DATABASE_URL), pass Underway(database=...) in code "
            "or --database on the command line, or use 'embedded:' for a Postgres of your own "
            "(pip install 'underway[embedded]')"
        )


class EmbeddedPostgresError(UnderwayError):
    """The embedded Postgres could not be started or used; the message says why and what to do."""


class SchemaError(UnderwayError):
    """The schema in the database does not fit this code."""


class SchemaMissing(SchemaError):
    """The database has no underway schema yet."""

    def __init__(self) -> None:
        super().__init__("the database has no underway schema: run 'underway migrate' (or call app.migrate()) once")


class SchemaTooOld(SchemaError):
    """This code needs a migration that has not been applied."""


class SchemaTooNew(SchemaError):
    """A migration in the database says that code as old as this must not run on it."""


class AppNotFound(UnderwayError):
    """APP names no module, file or attribute that could be imported."""


class ImportSideEffect(UnderwayError):
    """Importing the app tried to enqueue, cancel, migrate or run.

    Workers import the app again and again; whatever happens at import would happen each time.
    """


class SupervisorFailed(UnderwayError):
    """The supervisor of `app.run()` did not start serving, or was killed. Its own log has the details.

    `exit_code` is the exit code of `underway-supervisor`, or the negative number of the signal that killed it.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class InsideStep(UnderwayError):
    """A call that is not allowed inside a step, or a use of `cx` outside of it; the message says what to do instead."""


class JobDefinitionError(UnderwayError):
    """A job whose steps do not fit together; names both functions and both types."""


class InvalidOption(UnderwayError, ValueError):
    """An option with a value it cannot take; raised where the option was given."""


class PayloadError(UnderwayError, ValueError):
    """A value that cannot travel as JSON, or does not fit the type it should have."""


class UnknownJob(UnderwayError):
    """The database or this app knows no job, or no step of it, of that name."""


class RunNotFound(UnderwayError):
    """No run has this id. A finished run leaves the database after its `keep`."""


class RunFailed(UnderwayError):
    """The run ended as failed. The message is the last error of its last attempt."""


class RunCancelled(UnderwayError):
    """The run ended as cancelled; it has no result."""


class Retry(Exception):
    """Raised by a step: this attempt failed, try again `after` this long (by the retry policy if not given).

    Counts against the policy's `max_attempts` like any other failure.
    """

    def __init__(self, message: str = "", *, after: timedelta | None = None) -> None:
        if not isinstance(after, timedelta | None):
            raise InvalidOption(f"after must be a timedelta, not {after!r}")
        super().__init__(message)
        self.after = after


class Fail(Exception):
    """Raised by a step: the run fails now, whatever the retry policy would allow."""


class Interrupt(BaseException):
    """Raised inside a running step when its supervisor wants it to stop; its text is `timeout`, `cancel` or `shutdown`.

    Derives from BaseException so that `except Exception` does not swallow it. Clean up and let it pass: a few
    seconds later the worker process is killed. In a coroutine it is an asyncio.CancelledError besides.
    """
