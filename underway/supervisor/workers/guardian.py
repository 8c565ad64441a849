"""The supervisor's side of the guardian: its process, a pipe that sends it deadlines, and a pipe for its reports."""

import contextlib
import math
import os
import subprocess
import sys
from logging import getLogger

from underway.guardian import lease_clock, script
from underway.linux import is_stopped

log = getLogger("underway.supervisor")

# How long before a lease expires the guardian kills the workers. This is later than the supervisor itself would kill
# the task (limits.py), even for the shortest lease of one second, and early enough to finish before the lease expires.
STRIKE_SECONDS = 0.025
# How long a supervisor waits for the guardian to exit: it may have gigabytes of temporary files to remove.
_DISMISSAL_SECONDS = 1.0


class GuardianProcess:
    """Starts the guardian. Raises OSError if the system cannot start another process.

    `mark` is the prefix of all workers' marks. The guardian removes `folder` when the supervisor is gone, and inherits
    the descriptor `held`, which therefore stays open as long as one of the two lives. Both may be None.
    """

    def __init__(self, mark: str, folder: str | None, held: int | None) -> None:
        self._command = [sys.executable, "-I", "-S", script.__file__, mark, folder or ""]
        self._held = () if held is None else (held,)
        self._expires_at = math.inf
        self._due_at = math.inf
        self._struck = False
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            pass_fds=self._held,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._tells, self._answers = self._process.stdin, self._process.stdout
        os.set_blocking(self._tells.fileno(), False)
        os.set_blocking(self._answers.fileno(), False)
        self._clogged = False
        if self._expires_at < math.inf:
            self._tell(self._expires_at)

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Replace the guardian if it has died, is stopped, or does not read its pipe."""
        if self._process.poll() is None:
            if not (self._clogged or is_stopped(self.pid)):
                return
            log.error("the guardian does not run, starting another")
            self._process.kill()
            self._process.wait()
        else:
            log.error("the guardian is gone, starting another")
        self._hear()
        self._let_go()
        try:
            self._start()
        except OSError as error:  # a step may have exhausted the process limit; the next tick tries again
            log.error("cannot start the guardian, trying again: %s", error)

    def expect_word_by(self, expires_at: float) -> None:
        """Set the deadline (on the lease clock) at which the guardian kills the workers unless it gets a later one.

        An earlier deadline is sent at once. A later one is sent only when half of the time has passed, because each
        message wakes both processes.
        """
        if expires_at < self._expires_at or (expires_at > self._expires_at and lease_clock.now() >= self._due_at):
            self._tell(expires_at)

    def stand_down(self) -> None:
        """Clear the deadline: nothing that needs a lease is running."""
        if self._expires_at < math.inf:
            self._tell(math.inf)

    def _tell(self, expires_at: float) -> None:
        self._expires_at, now = expires_at, lease_clock.now()
        self._due_at = now + (expires_at - now) / 2
        try:
            # This never blocks. A guardian that does not read is detected (stopped, or its pipe is full) and replaced.
            os.write(self._tells.fileno(), b"%r\n" % (expires_at - STRIKE_SECONDS))
        except BlockingIOError:
            self._clogged = True
        except (OSError, ValueError):
            pass  # the guardian is gone, or its pipe is closed: the next check starts another, which gets the deadline

    def has_struck(self) -> bool:
        """Whether it has killed the workers since the last call, because this supervisor had been stopped."""
        self._hear()
        struck, self._struck = self._struck, False
        return struck

    def _hear(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # nothing to read, or the pipe is closed
            if script.KILLING_WORKERS in os.read(self._answers.fileno(), 4096):
                self._struck = True
                log.error("the guardian killed all workers: this supervisor was stopped until a lease nearly expired")

    def dismiss(self) -> None:
        self._let_go()
        try:
            self._process.wait(_DISMISSAL_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("the guardian is still removing temporary files of workers")

    def _let_go(self) -> None:
        self._tells.close()
        self._answers.close()
