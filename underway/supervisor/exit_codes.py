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
        "stopped, and running steps had to be interrupted or killed, and were released; "
        "or the database was away, and not everything could be written"
    ),
    ExitCode.USAGE: "wrong options, or no database named",
    ExitCode.APP_DOES_NOT_BOOT: "the app does not import, or not within a minute, at the start",
    ExitCode.SCHEMA_DOES_NOT_FIT: "the schema is missing, too old or too new at the start: underway migrate",
    ExitCode.DATABASE_UNREACHABLE: "the database could not be reached at the start",
}
