"""The exit codes of underway-supervisor."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What underway-supervisor returns."""

    CLEAN = 0
    KILLED_WORK = 1
    USAGE = 2
    APP_DOES_NOT_BOOT = 3
    SCHEMA_DOES_NOT_FIT = 4
    DATABASE_UNREACHABLE = 5


EXIT_CODES = {
    ExitCode.CLEAN: "stopped with nothing running, or idle with --until-idle",
    ExitCode.KILLED_WORK: (
        "stopped after interrupting or killing running steps, which were released; "
        "or stopped without recording all results because the database was unavailable"
    ),
    ExitCode.USAGE: "invalid options, or no database specified",
    ExitCode.APP_DOES_NOT_BOOT: "the app could not be imported at start, or not within a minute",
    ExitCode.SCHEMA_DOES_NOT_FIT: "the schema was missing, too old or too new at start; run: underway migrate",
    ExitCode.DATABASE_UNREACHABLE: "cannot connect to the database at start",
}
