"""Whether this process is a child that a step has forked, and how such a child ends."""

import logging
import os
from typing import NoReturn

log = logging.getLogger("underway.worker")

# Forks between the process that first imported this module and this one. Comparing it costs nothing, and os.getpid()
# is a system call.
depth = 0


def _count() -> None:
    global depth
    depth += 1


os.register_at_fork(after_in_child=_count)


def leave(error: BaseException | None) -> NoReturn:
    """End a forked child that has come back out of the step, by a return or by an exception.

    It must not go on as a second worker. os._exit flushes no buffer: what is in one is the parent's to write. A child
    that calls sys.exit(n) ends with n, as it would in a program without underway.
    """
    if isinstance(error, SystemExit):
        os._exit(_exit_code(error.code))
    if error is None:
        log.error("a child process returned from the step that forked it, and ends; end it with os._exit(0)")
    else:
        log.error("a child process of the step raised, and ends", exc_info=error)
    os._exit(1)


def _exit_code(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    log.error("a child process of the step ended with: %s", code)
    return 1
