"""Starts the process of a worker."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from logging import getLogger

from underway.guardian.script import MARK

worker_log = getLogger("underway.worker")

# Blanks in a worker's command line, which the worker overwrites with its title, so that `ps` shows what it does.
_ROOM_FOR_TITLE = 160


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """`mark` stands in the environment of the worker and of everything that it starts, by which they are found.

    `folder` is the working folder and `temporary` the TMPDIR; None for the supervisor's own.
    """

    app: str
    slot: int
    mark: str
    folder: str | None = None
    temporary: str | None = None


@dataclass(frozen=True, slots=True)
class Launched:
    """A started process with the supervisor's ends of its socket, its output and its pidfd."""

    process: "subprocess.Popen[bytes]"
    pidfd: int
    socket: socket.socket
    output: int
    their_socket: int  # the number of the socket's descriptor in the worker


def launch(spec: LaunchSpec) -> Launched:
    """Raises OSError if the system cannot start another process."""
    ours, theirs = socket.socketpair()
    output, their_output = os.pipe()
    os.set_blocking(output, False)
    # -P: a types.py beside the app must not shadow the standard library's while the worker still imports that.
    # exec, not fork: the child shares none of our memory, locks or descriptors.
    command = [sys.executable, "-P", "-m", "underway.worker", spec.app, str(theirs.fileno()), str(os.getpid())]
    # The worker need not send records that the supervisor would not log.
    command += [str(worker_log.getEffectiveLevel()), str(spec.slot).ljust(_ROOM_FOR_TITLE)]
    try:
        process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=their_output,
            stderr=their_output,
            start_new_session=True,  # keeps Ctrl-C, and a TERM for our whole group, away from the worker
            cwd=spec.folder,
            env=_environment(spec),
        )
        return Launched(process, _open_pidfd(process), ours, output, theirs.fileno())
    except OSError:
        ours.close()
        os.close(output)
        raise
    finally:
        theirs.close()
        os.close(their_output)


def _environment(spec: LaunchSpec) -> dict[str, str]:
    environment = {**os.environ, MARK: spec.mark, "PYTHONUNBUFFERED": "1"}
    return environment if spec.temporary is None else {**environment, "TMPDIR": spec.temporary}


def _open_pidfd(process: "subprocess.Popen[bytes]") -> int:
    """A descriptor that becomes readable when the process dies. Without one its death would go unnoticed."""
    try:
        return os.pidfd_open(process.pid)
    except OSError:
        process.kill()
        process.wait()
        raise
