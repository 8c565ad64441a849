"""Detects that this process is a child that a step has forked, and ends such a child."""

import logging
import os
from typing import NoReturn

log = logging.getLogger("underway.worker")

# The number of forks between the process that first imported this module and this one. Unlike os.getpid(), comparing it
# needs no system call.
depth = 0


def _count() -> None:
    global depth
    depth += 1


os.register_at_fork(after_in_child=_count)


def leave(error: BaseException | None) -> NoReturn:
    """Exit a forked child that has left the step, by a return or by an exception.

    It must not continue as a second worker. os._exit does not flush buffers, because their content belongs to the
    parent. A child that calls sys.exit(n) exits with n, as in a program without underway.
    """
    if isinstance(error, SystemExit):
        os._exit(_exit_code(error.code))
    if error is None:
        log.error("a child process returned from the step that forked it, and exits with 1; end it with os._exit(0)")
    else:
        log.error("a child process of the step raised an exception, and exits with 1", exc_info=error)
    os._exit(1)


def _exit_code(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    log.error("a child process of the step ended with: %s", code)
    return 1
