"""The keeper as its supervisor sees it: a process, a pipe that tells it how long all is well, and one for answers."""

import contextlib
import math
import os
import subprocess
import sys
from logging import getLogger

from underway import keeper, lease_clock

log = getLogger("underway.supervisor")

# The keeper strikes so long before a lease lapses: later than this supervisor ends the task by itself (limits.py), also
# for the shortest lease of a second, and early enough to be done.
STRIKE_SECONDS = 0.025
# It may have gigabytes of temporary files to remove; a supervisor does not wait longer for that.
_DISMISSAL_SECONDS = 1.0


class KeeperProcess:
    """Started at construction, which raises OSError if the system has no process to give.

    `mark` begins the marks of all workers. `folder` is removed with the supervisor, and `held` is a descriptor that
    stays open as long as either of them lives; None for none.
    """

    def __init__(self, mark: str, folder: str | None, held: int | None) -> None:
        self._command = [sys.executable, "-I", "-S", keeper.__file__, mark, folder or ""]
        self._held = () if held is None else (held,)
        self._lapses_at = math.inf
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
        if self._lapses_at < math.inf:
            self._tell(self._lapses_at)

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Replace it if it is gone, or does not do its duty."""
        if self._process.poll() is None:
            if not (self._clogged or _is_stopped(self.pid)):
                return
            log.error("the keeper does not run, starting another")
            self._process.kill()
            self._process.wait()
        else:
            log.error("the keeper is gone, starting another")
        self._hear()
        self._let_go()
        try:
            self._start()
        except OSError as error:  # a step may have used up what processes we may have; the next tick tries again
            log.error("no keeper can be started: %s", error)

    def expect_word_by(self, lapses_at: float) -> None:
        """Workers may run until then (on the clock of leases) without another word from us, and no longer.

        An earlier moment is told at once. A later one only when half of the time is over: each costs both a wake-up.
        """
        if lapses_at < self._lapses_at or (lapses_at > self._lapses_at and lease_clock.now() >= self._due_at):
            self._tell(lapses_at)

    def stand_down(self) -> None:
        """Nothing runs that has a lease."""
        if self._lapses_at < math.inf:
            self._tell(math.inf)

    def _tell(self, lapses_at: float) -> None:
        self._lapses_at, now = lapses_at, lease_clock.now()
        self._due_at = now + (lapses_at - now) / 2
        try:
            # One that does not read is found stopped, or clogged, and replaced; nothing here waits for it.
            os.write(self._tells.fileno(), b"%r\n" % (lapses_at - STRIKE_SECONDS))
        except BlockingIOError:
            self._clogged = True
        except (OSError, ValueError):
            pass  # it is gone, or its pipe closed: the next check starts another, which is told

    def has_struck(self) -> bool:
        """Whether it has killed our workers since we last asked, because we had stood still."""
        self._hear()
        struck, self._struck = self._struck, False
        return struck

    def _hear(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # nothing new, or a pipe that is closed
            if keeper.STRUCK in os.read(self._answers.fileno(), 4096):
                self._struck = True
                log.error("the keeper has killed all workers: this supervisor stood still until a lease nearly lapsed")

    def dismiss(self) -> None:
        self._let_go()
        try:
            self._process.wait(_DISMISSAL_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("the keeper goes on removing temporary files of workers")

    def _let_go(self) -> None:
        self._tells.close()
        self._answers.close()


def _is_stopped(pid: int) -> bool:
    """By a signal or a debugger. It could be killed by nobody then, nor kill anybody."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split(maxsplit=1)[0] in (b"T", b"t")
    except (OSError, IndexError):
        return False
