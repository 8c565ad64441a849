"""Processes and all they have started, as one thing that can be held, let go, and killed.

Whatever daemonizes or survives its parent becomes a child of this process, since it is a subreaper; it is known by a
mark in its environment. No process group would do: workers make their own.
"""

import ctypes
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import psutil

_MARK = "UNDERWAY_PEERS_TREE"
_PR_SET_CHILD_SUBREAPER = 36
_DEATH_SECONDS = 10
# multiprocessing's helper. It does no work, ends when it is alone, and removes semaphores that otherwise stay for good.
_TRACKER = "multiprocessing.resource_tracker"
_TRACKER_SECONDS = 2


def adopt_orphans() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Tree:
    """The processes of some commands that were started alike."""

    def __init__(self, command: list[str], copies: int, cwd: Path, environment: dict[str, str], log: Path) -> None:
        self._mark = uuid4().hex
        with log.open("ab") as output:
            self._roots = [
                subprocess.Popen(
                    command,
                    cwd=cwd,
                    env={**environment, _MARK: self._mark},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                for _ in range(copies)
            ]

    @property
    def alive(self) -> bool:
        return all(root.poll() is None for root in self._roots)

    def hold(self) -> None:
        """Stop them all where they are."""
        self._signal(signal.SIGSTOP)

    def let_go(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """All at once, as a power failure does: none of them sees another one die."""
        self.hold()
        began = time.monotonic()
        dead: set[int] = set()
        while processes := self._processes():
            waited = time.monotonic() - began
            if waited > _DEATH_SECONDS:
                raise RuntimeError(f"not to be killed: {processes}")
            for process in processes:
                with suppress(psutil.Error):
                    if waited < _TRACKER_SECONDS and any(_TRACKER in word for word in process.cmdline()):
                        process.resume()
                    else:
                        process.kill()
                dead.add(process.pid)
            time.sleep(0.01)
        for root in self._roots:
            root.wait()
        for pid in dead:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)

    def _signal(self, number: signal.Signals) -> None:
        """Twice, as one that was not stopped yet may have started another."""
        for _ in range(2):
            for process in self._processes():
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)

    def _processes(self) -> list[psutil.Process]:
        """Those that are alive: the dead have no environment."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if process.environ().get(_MARK) == self._mark:
                    found.append(process)
        return found
