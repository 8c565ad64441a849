"""Processes with all their descendants, which are paused, resumed and killed together.

A process that daemonizes or survives its parent becomes a child of this process, which is a subreaper. A tag in the
environment identifies the members. Process groups would not work: workers create their own.
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

_TAG = "UNDERWAY_PEERS_PROCESS_TREE"
_PR_SET_CHILD_SUBREAPER = 36
_DEATH_SECONDS = 10
# multiprocessing's helper runs no tasks. It exits after its clients and removes semaphores that would leak otherwise.
_TRACKER = "multiprocessing.resource_tracker"
_TRACKER_SECONDS = 2


def adopt_orphans() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class ProcessTree:
    """The processes of several copies of one command."""

    def __init__(self, command: list[str], copies: int, cwd: Path, environment: dict[str, str], log: Path) -> None:
        self._tag = uuid4().hex
        with log.open("ab") as output:
            self._roots = [
                subprocess.Popen(
                    command,
                    cwd=cwd,
                    env={**environment, _TAG: self._tag},
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

    def pause(self) -> None:
        """Stop all processes with SIGSTOP."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill all processes at once, as a power failure does: none of them sees another one die."""
        self.pause()
        began = time.monotonic()
        dead: set[int] = set()
        while processes := self._processes():
            waited = time.monotonic() - began
            if waited > _DEATH_SECONDS:
                raise RuntimeError(f"cannot kill {processes}")
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
        """Signal twice: a process that was still running during the first pass may have started another."""
        for _ in range(2):
            for process in self._processes():
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)

    def _processes(self) -> list[psutil.Process]:
        """The live members. Zombies have no environment."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if process.environ().get(_TAG) == self._tag:
                    found.append(process)
        return found
