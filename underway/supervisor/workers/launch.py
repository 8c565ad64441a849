"""Starts the process of a worker."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from logging import getLogger

from underway.guardian.script import MARK

worker_log = getLogger("underway.worker")

# Blanks in a worker's command line, which the worker overwrites with what it does: `ps` shows that (process_title.py).
_ROOM_FOR_TITLE = 160


@dataclass(frozen=True, slots=True)
class Launched:
    """A started process with the supervisor's ends of its socket, its output and its pidfd."""

    process: "subprocess.Popen[bytes]"
    pidfd: int
    socket: socket.socket
    output: int
    their_socket: int  # the number of the socket's descriptor in the worker


def launch(app: str, slot: int, mark: str, folder: str | None, temporary: str | None) -> Launched:
    """Raises OSError if the system cannot start another process."""
    ours, theirs = socket.socketpair()
    output, their_output = os.pipe()
    os.set_blocking(output, False)
    # -P: a types.py beside the app must not shadow the standard library's while the worker still imports that.
    # exec, never fork: the child has none of our memory, locks or descriptors.
    command = [sys.executable, "-P", "-m", "underway.worker", app, str(theirs.fileno()), str(os.getpid())]
    # The worker need not send records that the supervisor would not log.
    command += [str(worker_log.getEffectiveLevel()), str(slot).ljust(_ROOM_FOR_TITLE)]
    try:
        process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=their_output,
            stderr=their_output,
            start_new_session=True,  # keeps Ctrl-C, and a TERM for our whole group, away from the worker
            cwd=folder,
            env=_environment(mark, temporary),
        )
        return Launched(process, _open_pidfd(process), ours, output, theirs.fileno())
    except OSError:
        ours.close()
        os.close(output)
        raise
    finally:
        theirs.close()
        os.close(their_output)


def _environment(mark: str, temporary: str | None) -> dict[str, str]:
    environment = {**os.environ, MARK: mark, "PYTHONUNBUFFERED": "1"}
    return environment if temporary is None else {**environment, "TMPDIR": temporary}


def _open_pidfd(process: "subprocess.Popen[bytes]") -> int:
    """A descriptor that becomes readable when the process dies. Without one its death would go unnoticed."""
    try:
        return os.pidfd_open(process.pid)
    except OSError:
        process.kill()
        process.wait()
        raise
