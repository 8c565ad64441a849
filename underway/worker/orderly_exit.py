"""The orderly exit of an idle worker. A killed worker does not run this."""

import atexit
import contextlib
import logging
import os
import sys
from typing import NoReturn

from underway.app import Underway

log = logging.getLogger("underway.worker")


def exit_in_order(app: Underway) -> NoReturn:
    """Call the app's hooks, then the functions that libraries have registered with atexit, and exit.

    The supervisor kills a worker that takes too long. The rest of the interpreter's shutdown is skipped: it would wait
    for the app's threads, and native libraries crash in it.
    """
    for hook in reversed(app.registry.worker_end_hooks):
        try:
            hook()
        except BaseException:
            log.exception("%s, called at the worker's end, raised an error", getattr(hook, "__qualname__", repr(hook)))
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()
    os._exit(0)
